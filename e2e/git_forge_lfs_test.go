package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// lfsObject is an object in the requests and answers of the batch API (git-lfs, docs/api/batch.md).
type lfsObject struct {
	OID     string               `json:"oid"`
	Size    int64                `json:"size"`
	Actions map[string]lfsAction `json:"actions,omitempty"`
	Error   map[string]any       `json:"error,omitempty"`
}

// lfsAction is where an object is to be had or put.
type lfsAction struct {
	Href      string            `json:"href"`
	Header    map[string]string `json:"header,omitempty"`
	ExpiresIn int               `json:"expires_in,omitempty"`
}

// lfsLock is a lock of the locking API (git-lfs, docs/api/locking.md).
type lfsLock struct {
	repository string
	ID         string            `json:"id"`
	Path       string            `json:"path"`
	LockedAt   string            `json:"locked_at"`
	Owner      map[string]string `json:"owner"`
}

// serveLFS answers the batch and the locking API. Objects are to be fetched from another host, by another token.
func (f *forge) serveLFS(w http.ResponseWriter, r *http.Request) {
	repository := repositoryPath(r.URL.Path)
	if _, err := os.Stat(filepath.Join(f.root, repository)); err != nil {
		lfsAnswer(w, http.StatusNotFound, map[string]string{"message": "no such repository"})
		return
	}
	_, what, _ := strings.Cut(r.URL.Path, "/info/lfs/")
	var asked struct {
		Operation string      `json:"operation"`
		Objects   []lfsObject `json:"objects"`
		Path      string      `json:"path"`
	}
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&asked); err != nil {
			lfsAnswer(w, http.StatusUnprocessableEntity, map[string]string{"message": err.Error()})
			return
		}
	}
	status, answer := f.largeAnswer(r, repository, what, asked.Operation, asked.Path, asked.Objects)
	lfsAnswer(w, status, answer)
}

// largeAnswer does what was asked of either API.
func (f *forge) largeAnswer(r *http.Request, repository, what, operation, file string, objects []lfsObject) (status int, answer any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mine := []lfsLock{}
	for _, l := range f.locks {
		if l.repository == repository {
			mine = append(mine, l)
		}
	}
	switch {
	case r.Method == http.MethodPost && what == "objects/batch":
		return http.StatusOK, map[string]any{"transfer": "basic", "hash_algo": "sha256", "objects": f.batch(r, repository, operation, objects)}
	case r.Method == http.MethodPost && what == "locks":
		l := lfsLock{repository: repository, ID: fmt.Sprint(len(f.locks) + 1), Path: file, LockedAt: time.Now().UTC().Format(time.RFC3339), Owner: map[string]string{"name": "forge"}}
		f.locks = append(f.locks, l)
		return http.StatusCreated, map[string]any{"lock": l}
	case r.Method == http.MethodGet && what == "locks":
		return http.StatusOK, map[string]any{"locks": mine}
	case r.Method == http.MethodPost && what == "locks/verify":
		return http.StatusOK, map[string]any{"ours": mine, "theirs": []lfsLock{}}
	case r.Method == http.MethodPost && strings.HasSuffix(what, "/unlock"):
		for i, l := range f.locks {
			if l.repository == repository && what == "locks/"+l.ID+"/unlock" {
				f.locks = append(f.locks[:i:i], f.locks[i+1:]...)
				return http.StatusOK, map[string]any{"lock": l}
			}
		}
	case r.Method == http.MethodPost && what == "verify":
		return http.StatusOK, map[string]string{}
	}
	return http.StatusNotFound, map[string]string{"message": "there is no such thing"}
}

// batch says where objects are.
func (f *forge) batch(r *http.Request, repository, operation string, objects []lfsObject) []lfsObject {
	base, own := "https://"+f.objectsAuthority(), "https://"+gitHost+":"+f.port
	if r.TLS == nil {
		base = "http://" + r.Host
		own = base
	}
	header := map[string]string{"Authorization": "Bearer " + objectToken, "X-Object-Token": objectToken}
	for i, o := range objects {
		_, err := os.Stat(f.object(repository, o.OID))
		action := lfsAction{Href: base + "/objects/" + repository + "/" + o.OID + "?sig=" + objectToken[len(objectToken)-8:], Header: header, ExpiresIn: 3600}
		switch {
		case operation == "download" && err != nil:
			objects[i].Error = map[string]any{"code": 404, "message": "no such object"}
		case operation == "download":
			objects[i].Actions = map[string]lfsAction{"download": action}
		case err != nil:
			objects[i].Actions = map[string]lfsAction{"upload": action, "verify": {
				Href: own + "/" + repository + "/info/lfs/verify", Header: map[string]string{"Authorization": "Bearer " + gitToken}}}
		}
	}
	return objects
}

// object is where an object lies.
func (f *forge) object(repository, oid string) string {
	return filepath.Join(f.root, repository, "lfs", path.Base(oid))
}

// serveObject is the storage of large objects.
func (f *forge) serveObject(w http.ResponseWriter, r *http.Request) {
	repository, oid := path.Split(strings.TrimPrefix(r.URL.Path, "/objects/"))
	name := f.object(path.Clean(repository), oid)
	switch {
	case r.Header.Get("Authorization") != "Bearer "+objectToken || r.Header.Get("X-Object-Token") != objectToken:
		http.Error(w, "no access to objects", http.StatusForbidden)
	case r.TLS != nil && r.Host != f.objectsAuthority():
		http.Error(w, "objects are elsewhere", http.StatusMisdirectedRequest)
	case r.Method == http.MethodGet:
		http.ServeFile(w, r, name)
	case r.Method == http.MethodPut:
		data, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
		sum := sha256.Sum256(data)
		if err != nil || hex.EncodeToString(sum[:]) != oid {
			http.Error(w, "not what was announced", http.StatusBadRequest)
			return
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	default:
		http.Error(w, "no such method", http.StatusMethodNotAllowed)
	}
}

// lfsAnswer writes an answer of either API.
func lfsAnswer(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/vnd.git-lfs+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the client may be gone
}
