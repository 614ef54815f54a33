package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// tidyModule is the module that the small program needs. This program has it too, so that the machine's own module cache has it.
const tidyModule = "golang.org/x/sys"

// makeProgram makes a small program, with caches of its own in which everything but the program is there.
func (f *filesWork) makeProgram(ctx context.Context) error {
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("ask go where it is: %w", err)
	}
	programs := filepath.Join(strings.TrimSpace(string(goroot)), "bin")
	if err := belowUsr(programs); err != nil {
		return err
	}
	version := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == tidyModule {
				version = m.Version
			}
		}
	}
	modules, err := exec.CommandContext(ctx, "go", "env", "GOMODCACHE").Output()
	if err != nil {
		return fmt.Errorf("ask go for its modules: %w", err)
	}
	dir := filepath.Join(f.ours(), "program")
	const source = "package main\n\nimport (\n\t\"encoding/json\"\n\t\"os\"\n\n\t\"golang.org/x/sys/unix\"\n)\n\n" +
		"func main() { _ = json.NewEncoder(os.Stdout).Encode([]any{nonce, unix.Getpid()}) }\n"
	err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644),
		os.WriteFile(filepath.Join(dir, "go.mod"), fmt.Appendf(nil, "module example.com/program\n\ngo 1.24\n\nrequire %s %s\n", tidyModule, version), 0o644))
	if err != nil {
		return err
	}
	build := func(folder string) runTask {
		return runTask{Argv: []string{"/bin/sh", "-c", `echo "package main; const nonce = \"$(date +%s%N)\"" > nonce.go && exec go build -mod=mod -o ../built .`}, Dir: filepath.Join(folder, "program"),
			Env: environmentIn(folder, programs+":")}
	}
	first := build(f.ours())
	first.Env = append(first.Env, "GOPROXY=file://"+filepath.Join(strings.TrimSpace(string(modules)), "cache", "download"))
	if _, err := first.carryOut(); err != nil {
		return err
	}
	f.work = append(f.work, filesTask{"`go build` of a changed small program, caches warm", build})
	return nil
}

// makePackages makes packages and a cache of npm's that has them, and a project that wants all of them. npm is asked nothing but to fill its cache.
func (f *filesWork) makePackages(ctx context.Context) error {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return errors.New("not installed; on Debian: apt-get install npm")
	}
	for _, program := range []string{"npm", "node"} {
		path, err := exec.LookPath(program)
		if err == nil {
			err = belowUsr(path)
		}
		if err != nil {
			return err
		}
	}
	dir, packed := filepath.Join(f.ours(), "project"), filepath.Join(f.dir, "packed")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(packed, 0o755)); err != nil {
		return err
	}
	wanted, locked, files := map[string]string{}, map[string]any{}, []string{}
	for i := range npmPackages {
		name := fmt.Sprintf("bench-package%d", i)
		data, err := packageOf(name)
		if err != nil {
			return err
		}
		files = append(files, filepath.Join(packed, name+".tgz"))
		if err := os.WriteFile(files[i], data, 0o644); err != nil {
			return err
		}
		sum := sha512.Sum512(data)
		wanted[name] = "1.0.0"
		locked["node_modules/"+name] = map[string]string{"version": "1.0.0", "resolved": "https://registry.example.org/" + name + "/-/" + name + "-1.0.0.tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
	}
	project := map[string]any{"name": "bench", "version": "1.0.0", "dependencies": wanted}
	locked[""] = project
	text, err := json.Marshal(project)
	lock, err2 := json.Marshal(map[string]any{"name": "bench", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": locked})
	if err := errors.Join(err, err2, os.WriteFile(filepath.Join(dir, "package.json"), text, 0o644), os.WriteFile(filepath.Join(dir, "package-lock.json"), lock, 0o644)); err != nil {
		return err
	}
	install := func(folder string, words ...string) runTask {
		argv := append([]string{npm, "--cache", filepath.Join(folder, "npm"), "--offline", "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--logs-max=0"}, words...)
		return runTask{Argv: argv, Dir: filepath.Join(folder, "project"), Env: environmentIn(folder, "")}
	}
	if _, err := install(f.ours(), append([]string{"cache", "add"}, files...)...).carryOut(); err != nil {
		return err
	}
	if _, err := install(f.ours(), "ci").carryOut(); err != nil {
		return err
	}
	f.work = append(f.work, filesTask{fmt.Sprintf("`npm ci` of %d packages with %d files from its cache", npmPackages, npmPackages*npmFiles), func(folder string) runTask { return install(folder, "ci") }})
	return nil
}

// packageOf is a package of npm's, as registries have them.
func packageOf(name string) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	add := func(file, text string) error {
		err := w.WriteHeader(&tar.Header{Name: "package/" + file, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text)), ModTime: treeTime()})
		_, err2 := w.Write([]byte(text))
		return errors.Join(err, err2)
	}
	if err := add("package.json", fmt.Sprintf(`{"name":%q,"version":"1.0.0"}`, name)); err != nil {
		return nil, err
	}
	for i := range npmFiles - 1 {
		if err := add(fmt.Sprintf("lib/file%d.js", i), strings.Repeat(fmt.Sprintf("exports.%s%d = () => 'of %s'\n", "f", i, name), 40)); err != nil {
			return nil, err
		}
	}
	err := errors.Join(w.Close(), z.Close())
	return out.Bytes(), err
}
