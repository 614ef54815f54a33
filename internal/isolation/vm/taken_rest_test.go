package vm

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// restScenes are what a guest that was taken over says when it is due to come to rest, by name; what follows is an end in order.
func restScenes() map[string]func(*boot.Guest) error {
	rest := func(g *boot.Guest) error {
		err := g.Rested()
		if err == nil {
			_, err = g.Receive()
		}
		return err
	}
	return map[string]func(*boot.Guest) error{
		"rest":       rest,
		"rest never": func(*boot.Guest) error { return nil },
		"rest again": func(g *boot.Guest) error { return errors.Join(rest(g), g.Rested()) },
		"rest endless": func(g *boot.Guest) error {
			for {
				if err := g.Rested(); err != nil {
					return err
				}
			}
		},
		"rest flood": func(g *boot.Guest) error { // nobody reads it before it is told to go on
			if err := g.Rested(); err != nil {
				return err
			}
			out, much := g.Changes(), make([]byte, boot.MaxChunk)
			for {
				if _, err := out.Write(much); err != nil {
					return err
				}
			}
		},
		"rest silent": func(*boot.Guest) error { time.Sleep(10 * time.Minute); return nil },
		"rest stays": func(g *boot.Guest) error {
			err := rest(g)
			time.Sleep(10 * time.Minute)
			return err
		},
	}
}

// TestTakenRest has a guest that is the attacker's whole come to rest, or not: it holds up the host for a bounded time, and what is kept of it is what its machine's memory is.
func TestTakenRest(t *testing.T) {
	testenv.Need(t, "root")
	for scene, c := range map[string]struct {
		kept bool
		lost string // what is said of the folder's changes
	}{
		"rest": {kept: true}, "rest never": {lost: "not expected here"}, "rest again": {kept: true, lost: "not expected here"}, "rest endless": {kept: true, lost: "not expected here"},
		"rest flood": {kept: true, lost: "not expected here"}, "rest silent": {lost: "timeout"}, "rest stays": {kept: true, lost: "timeout"},
	} {
		t.Run(scene, func(t *testing.T) {
			t.Parallel()
			s, _ := takenMachine(t, scene)
			dir := s.keeping.dir
			s.Keep(true)
			select {
			case <-s.Done():
			case <-time.After(restPatience + 30*time.Second):
				t.Fatal("it holds up its sandbox's end")
			}
			kept, lost := s.Kept(), s.Lost()
			if (kept.Error == "") != c.kept {
				t.Errorf("kept: %+v", kept)
			}
			if _, err := os.Stat(dir); (err == nil) != c.kept {
				t.Errorf("the snapshot: %v", err)
			}
			if c.lost == "" && lost != nil || c.lost != "" && (lost == nil || !strings.Contains(lost.Error(), c.lost)) {
				t.Errorf("changes lost: %v, want %q", lost, c.lost)
			}
		})
	}
	t.Run("not wanted", func(t *testing.T) {
		s, _ := takenMachine(t, "rest")
		s.Keep(false)
		over(t, s)
		if _, err := os.Stat(s.keeping.dir); err == nil || s.Kept() != nil || s.Lost() != nil {
			t.Errorf("kept %+v, %v, changes %v", s.Kept(), err, s.Lost())
		}
	})
	t.Run("ended meanwhile", func(t *testing.T) {
		s, _ := takenMachine(t, "rest")
		s.Hurry()
		over(t, s)
		s.Keep(true)
		if kept := s.Kept(); kept == nil || kept.Error == "" {
			t.Errorf("kept %+v", kept)
		}
	})
}
