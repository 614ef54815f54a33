package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// history is what a repository is made of. It is the same each time: nothing in it is left to chance.
type history struct {
	commits    int
	files      int // of text, of about 8 KiB; each commit changes some lines in four of them, which become deltas
	assets     int // that no compression makes smaller; they come with the commits, one by one
	assetBytes int
}

// history200 becomes a pack of about 200 MiB of some 50,000 objects: four fifths of it assets, the rest text, trees and commits, mostly deltas.
var history200 = history{commits: 4000, files: 3000, assets: 364, assetBytes: 512 << 10}

// history1024 becomes a pack of 1 GiB that is one commit of many files.
var history1024 = history{commits: 1, assets: 16 << 10, assetBytes: 64 << 10}

// historySmall is the least of a repository.
var historySmall = history{commits: 2, files: 20, assets: 1, assetBytes: 1 << 10}

// change is one new content of a text file.
type change struct{ file, version int }

// make writes the repository, bare, with its branch main, and packs it as a forge has it: with a bitmap, from which it answers without a search.
func (h history) make(ctx context.Context, dir string) error {
	if err := bare(ctx, dir); err != nil {
		return err
	}
	// Assets are not compared with one another. Where there is nothing but what does not compress, trying to would only take time.
	args := []string{"-c", "core.bigFileThreshold=32k"}
	if h.files == 0 {
		args = append(args, "-c", "core.compression=0")
	}
	cmd := exec.CommandContext(ctx, "git", append(args, "fast-import", "--quiet", "--done")...)
	cmd.Dir, cmd.Env = dir, forgeEnvironment(dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	w := bufio.NewWriterSize(in, chunk)
	h.write(w)
	err = w.Flush()
	_ = in.Close() // what it has not got, it says
	if ended := cmd.Wait(); ended != nil || err != nil {
		return fmt.Errorf("git fast-import: %w %w: %s", err, ended, firstLine(said.String()))
	}
	return forgeGit(ctx, dir, "repack", "-a", "-d", "-b", "-q")
}

// bare makes an empty repository that takes pushes.
func bare(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := forgeGit(ctx, dir, "init", "-q", "--bare", "-b", "main"); err != nil {
		return err
	}
	// Waiting for the disk would be measured otherwise, and tidying up.
	config := "[http]\n\treceivepack = true\n[core]\n\tfsync = none\n[receive]\n\tautogc = false\n[gc]\n\tauto = 0\n"
	f, err := os.OpenFile(filepath.Join(dir, "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(config)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// forgeGit runs git on the forge's side.
func forgeGit(ctx context.Context, dir string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = dir, forgeEnvironment(dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w: %s", args[0], err, firstLine(string(out)))
	}
	return nil
}

// forgeEnvironment has nothing of this machine's settings.
func forgeEnvironment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GIT_CONFIG_NOSYSTEM=1"}
}

// write writes the stream for git fast-import: first every content of every file, one after the other so that each is a delta of the one before, then the commits.
func (h history) write(w *bufio.Writer) {
	plan := rand.New(rand.NewPCG(1, 1))
	versions := make([]int, h.files)
	changes := make([][]change, h.commits)
	for i := range changes {
		for range min(4, h.files) {
			file := plan.IntN(h.files)
			versions[file]++
			changes[i] = append(changes[i], change{file, versions[file]})
		}
	}
	marks := make([]int, h.files) // of a file's first content
	next := 1
	for file, last := range versions {
		marks[file] = next
		next = writeText(w, next, file, last)
	}
	noise := rand.NewChaCha8([32]byte{1})
	for i := range h.assets {
		fmt.Fprintf(w, "blob\nmark :%d\ndata %d\n", next+i, h.assetBytes)
		_, _ = io.CopyN(w, noise, int64(h.assetBytes)) // an error shows at the end
		_ = w.WriteByte('\n')                          // likewise
	}
	assets := 0
	for i, all := range changes {
		message := fmt.Sprintf("change %d\n", i)
		fmt.Fprintf(w, "commit refs/heads/main\ncommitter Bench <bench@example.com> %d +0000\ndata %d\n%s\n", 1_700_000_000+60*i, len(message), message)
		if i == 0 {
			for file, mark := range marks {
				fmt.Fprintf(w, "M 100644 :%d %s\n", mark, textPath(file))
			}
		}
		for _, c := range all {
			fmt.Fprintf(w, "M 100644 :%d %s\n", marks[c.file]+c.version, textPath(c.file))
		}
		for due := h.assets * (i + 1) / h.commits; assets < due; assets++ {
			fmt.Fprintf(w, "M 100644 :%d assets/%03d/%03d.bin\n", next+assets, assets/128, assets%128)
		}
		_ = w.WriteByte('\n') // likewise
	}
	fmt.Fprint(w, "done\n")
}

// textPath is where a text file lies: three folders deep.
func textPath(file int) string {
	return fmt.Sprintf("src/part%02d/unit%02d/file%d.txt", file%20, file/20%15, file)
}

// writeText writes a file's contents from the first to the last, and returns the next mark.
func writeText(w *bufio.Writer, mark, file, last int) int {
	words := rand.New(rand.NewPCG(2, uint64(file)))
	line := func() string {
		var b strings.Builder
		for range 8 {
			fmt.Fprintf(&b, "%s ", strings.Repeat(string(rune('a'+words.IntN(26))), 1+words.IntN(3))+fmt.Sprint(words.IntN(3000)))
		}
		return b.String() + "\n"
	}
	lines := make([]string, 160)
	for i := range lines {
		lines[i] = line()
	}
	for version := range last + 1 {
		if version > 0 {
			for range 3 {
				lines[words.IntN(len(lines))] = line()
			}
		}
		content := strings.Join(lines, "")
		fmt.Fprintf(w, "blob\nmark :%d\ndata %d\n%s\n", mark, len(content), content)
		mark++
	}
	return mark
}

// sizeOfPacks is how much of a repository would go over the wire.
func sizeOfPacks(dir string) (bytes int64, err error) {
	packs, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "*.pack"))
	for _, pack := range packs {
		info, failed := os.Stat(pack)
		if failed != nil {
			return 0, failed
		}
		bytes += info.Size()
	}
	return bytes, err
}
