package rootfs

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"strconv"
	"unicode/utf16"
)

// JavaStores are where distributions keep the list of certificate authorities that all their Java runtimes read: Debian, Alpine and Arch, Fedora, SUSE; and the one
// of the usual image of a runtime. A runtime with a list of its own elsewhere has to be told of one of these: -Djavax.net.ssl.trustStore=FILE.
func JavaStores() []string {
	return []string{"/etc/ssl/certs/java/cacerts", "/etc/pki/ca-trust/extracted/java/cacerts", "/var/lib/ca-certificates/java-cacerts", "/opt/java/openjdk/lib/security/cacerts"}
}

// java returns a Java key store with more authorities at its end; nil where there is none.
//
// Runtimes read both of the forms that such a file has (keystore.type.compat in java.security), so a store in the other one is replaced by one with the authorities of
// the system's bundle. Where there is no bundle either it stays as it is.
func (l listing) java(path string, more []byte) ([]byte, error) {
	data, err := l.read(path)
	if data == nil || err != nil {
		return nil, err
	}
	store, err := parseJKS(data)
	if errors.Is(err, errNotJKS) {
		var list []byte
		for _, bundle := range Bundles() {
			if list, err = l.read(bundle); list != nil || err != nil {
				break
			}
		}
		if list == nil || err != nil {
			return nil, err
		}
		store.add("system", list)
	}
	store.add("cofferdam", more)
	return store.encode(), nil
}

// javaStore is a key store of trusted certificates in Java's own form, JKS version 2, as sun.security.provider.JavaKeyStore reads and writes it.
type javaStore struct {
	count   uint32
	entries []byte
}

const (
	jksMagic   = 0xfeedfeed
	jksVersion = 2
	jksTrusted = 2 // the kind of an entry: a certificate that is trusted, without a key
	jksHead    = 12
)

var errNotJKS = errors.New("it is no key store in JKS")

// parseJKS takes the entries of a store as they are. The hash at its end, which is no secret's, is made anew.
func parseJKS(data []byte) (javaStore, error) {
	if len(data) < jksHead+sha1.Size || binary.BigEndian.Uint32(data) != jksMagic || binary.BigEndian.Uint32(data[4:]) != jksVersion {
		return javaStore{}, errNotJKS
	}
	s := javaStore{count: binary.BigEndian.Uint32(data[8:]), entries: data[jksHead : len(data)-sha1.Size]}
	if sum := s.sum(s.encode()[:jksHead+len(s.entries)]); !bytes.Equal(sum, data[len(data)-sha1.Size:]) {
		return javaStore{}, errNotJKS // cut off, or under a password of its own: what it holds cannot be told
	}
	return s, nil
}

// add adds the certificates of a list in PEM.
func (s *javaStore) add(name string, list []byte) {
	s.entries = bytes.Clone(s.entries)
	for n := 1; ; n++ {
		var block *pem.Block
		if block, list = pem.Decode(list); block == nil {
			return
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		s.count++
		s.entries = binary.BigEndian.AppendUint32(s.entries, jksTrusted)
		s.entries = appendUTF(s.entries, name+"-"+strconv.Itoa(n))
		s.entries = binary.BigEndian.AppendUint64(s.entries, 0) // when it was added
		s.entries = appendUTF(s.entries, "X.509")
		s.entries = binary.BigEndian.AppendUint32(s.entries, uint32(len(block.Bytes)))
		s.entries = append(s.entries, block.Bytes...)
	}
}

func (s *javaStore) encode() []byte {
	out := binary.BigEndian.AppendUint32(nil, jksMagic)
	out = binary.BigEndian.AppendUint32(out, jksVersion)
	out = binary.BigEndian.AppendUint32(out, s.count)
	out = append(out, s.entries...)
	return append(out, s.sum(out)...)
}

// sum is the hash at a store's end, under the password that all runtimes come with. It is there against accidents: nothing is secret about the list.
func (s *javaStore) sum(content []byte) []byte {
	h := sha1.New()
	for _, unit := range utf16.Encode([]rune("changeit")) {
		_, _ = h.Write(binary.BigEndian.AppendUint16(nil, unit)) // a hash takes everything
	}
	_, _ = h.Write([]byte("Mighty Aphrodite"))
	_, _ = h.Write(content)
	return h.Sum(nil)
}

// appendUTF appends a text of ASCII as java.io.DataOutput.writeUTF does.
func appendUTF(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...)
}
