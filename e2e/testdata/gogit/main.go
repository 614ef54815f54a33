// Command gogit is go-git as a program. Usage: gogit clone|shallow DIR URL; fetch DIR; push DIR [-o OPTION] REFSPEC...
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing/transport/http"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, git.NoErrAlreadyUpToDate) {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage")
	}
	op, dir, rest := args[0], args[1], args[2:]
	auth := &http.BasicAuth{Username: os.Getenv("CLIENT_USER"), Password: os.Getenv("CLIENT_PASSWORD")}
	if op == "clone" || op == "shallow" {
		o := &git.CloneOptions{URL: rest[0], Auth: auth, Progress: os.Stdout}
		if op == "shallow" {
			o.Depth = 1
		}
		_, err := git.PlainClone(dir, false, o)
		return err
	}
	r, err := git.PlainOpen(dir)
	if err != nil {
		return err
	}
	switch op {
	case "fetch":
		return r.Fetch(&git.FetchOptions{Auth: auth, Progress: os.Stdout})
	case "push":
		o := &git.PushOptions{Auth: auth, Progress: os.Stdout}
		if rest[0] == "-o" {
			key, value, _ := strings.Cut(rest[1], "=")
			o.Options = map[string]string{key: value}
			rest = rest[2:]
		}
		for _, spec := range rest {
			o.RefSpecs = append(o.RefSpecs, config.RefSpec(spec))
		}
		return r.Push(o)
	}
	return errors.New("usage")
}
