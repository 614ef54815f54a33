package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// maxValue bounds what is read as one secret; the store's own bound lies below.
const maxValue = 16 << 10

// readSecrets reads the secrets of a credential: from the files that were named, and what is missing then from standard input or a prompt.
// filesOnly leaves out what no file was named for.
func (a *app) readSecrets(ctx context.Context, m credential.Meta, files []string, filesOnly bool) (credential.Material, error) {
	required, optional := m.Kind.Fields()
	all := slices.Concat(required, optional)
	secrets := credential.Material{}
	for _, text := range files {
		field, file := required[0], text
		if name, rest, ok := strings.Cut(text, "="); ok && slices.Contains(all, credential.Field(name)) {
			field, file = credential.Field(name), rest
		}
		if _, twice := secrets[field]; twice {
			return nil, fault.New(fault.Invalid, "two files for the %s", field).WithHint("write --from-file FIELD=FILE; the fields of kind %s are %s", m.Kind, credential.FieldNames(all))
		}
		v, err := a.readSecretFile(field, file)
		if err != nil {
			return nil, err
		}
		secrets[field] = v
	}
	if filesOnly {
		return secrets, nil
	}
	for _, field := range required {
		if _, have := secrets[field]; have {
			continue
		}
		v, err := a.readSecret(ctx, m.Name, field)
		if err != nil {
			return nil, err
		}
		secrets[field] = v
	}
	return secrets, nil
}

func (a *app) readSecretFile(field credential.Field, file string) (secret.Bytes, error) {
	f, err := os.Open(file)
	if err != nil {
		if e, ok := errors.AsType[*os.PathError](err); ok {
			err = e.Err // the name may be a secret that was meant for standard input
		}
		return secret.Bytes{}, fault.New(fault.Invalid, "cannot read the file for the %s", field).WithHint("write --from-file FILE; - has no meaning, standard input is read without the flag").Because(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		fmt.Fprintf(a.stderr, "cofferdam: others on this machine can read %s; remove it once the credential works\n", file)
	}
	return readValue(field, f)
}

// readSecret reads from standard input, or asks where that is a terminal.
func (a *app) readSecret(ctx context.Context, name credential.Name, field credential.Field) (secret.Bytes, error) {
	if a.stdin == nil {
		return secret.Bytes{}, fault.New(fault.Invalid, "there is no standard input to read the %s from", field)
	}
	if !isTerminal(a.stdin) {
		return readValue(field, a.stdin)
	}
	if field == credential.PrivateKey {
		return secret.Bytes{}, fault.New(fault.Invalid, "a private key has many lines, which a prompt does not take").WithHint("write --from-file KEY.pem")
	}
	fmt.Fprintf(a.stderr, "%s of %s (not shown): ", field, name)
	data, err := promptHidden(ctx, int(a.stdin.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return secret.Bytes{}, err
	}
	return readValue(field, bytes.NewReader(data))
}

// promptHidden reads a line without echo. An interruption gives the terminal its echo back.
func promptHidden(ctx context.Context, fd int) ([]byte, error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("look at the terminal: %w", err)
	}
	type outcome struct {
		data []byte
		err  error
	}
	done := make(chan outcome, 1)
	// Left behind when interrupted: a read from a terminal cannot be called back, and the process ends.
	go func() {
		data, err := term.ReadPassword(fd)
		done <- outcome{data, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, fault.New(fault.Invalid, "nothing was typed").Because(o.err)
		}
		return o.data, nil
	case <-ctx.Done():
		if err := term.Restore(fd, before); err != nil {
			return nil, fmt.Errorf("give the terminal its echo back: %w", err)
		}
		return nil, status(128 + int(syscall.SIGINT))
	}
}

// readValue reads one secret whole. One line break at its end is not part of it, except of a key's PEM.
func readValue(field credential.Field, r io.Reader) (secret.Bytes, error) {
	data := make([]byte, maxValue+1)
	defer clear(data)
	n, err := io.ReadFull(r, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return secret.Bytes{}, fmt.Errorf("read the %s: %w", field, err)
	}
	if n > maxValue {
		return secret.Bytes{}, fault.New(fault.Invalid, "the %s is longer than %d bytes", field, maxValue).WithHint("give the secret alone")
	}
	value := data[:n]
	if field != credential.PrivateKey {
		value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	}
	if len(value) == 0 {
		return secret.Bytes{}, fault.New(fault.Invalid, "the %s is empty", field).WithHint("give it on standard input, at the prompt, or with --from-file FILE")
	}
	return secret.New(value), nil
}
