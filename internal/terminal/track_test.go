package terminal

import (
	"slices"
	"testing"
)

func TestTracker(t *testing.T) {
	tests := []struct {
		name, out string
		alt       bool
		quiet     bool
		undo      string
	}{
		{"plain", "hello\r\n", false, true, ""},
		{"colours", "\x1b[1;31mred\x1b[0m", false, true, ""},
		{"alternate screen", "\x1b[?1049h", true, true, "\x1b[?1049l" + plainText},
		{"older numbers", "\x1b[?47h\x1b[?47l\x1b[?1047h", true, true, "\x1b[?1049l" + plainText},
		{"and back", "\x1b[?1049hx\x1b[?1049l", false, true, ""},
		{"among others", "\x1b[?1;1049;25h", true, true, "\x1b[?1l\x1b[?1049l" + plainText},
		{"not private", "\x1b[1049h", false, true, ""},
		{"other prefix", "\x1b[>1049h", false, true, ""},
		{"other number", "\x1b[?10490h\x1b[?104h9h", false, true, ""},
		{"request of the mode", "\x1b[?1049$p", false, true, ""},
		{"in a title", "\x1b]0;[?1049h\x07", false, true, ""},
		{"in a device string", "\x1bPq[?1049h\x1b\\", false, true, ""},
		{"escape ends a title", "\x1b]0;x\x1b[?1049h", true, true, "\x1b[?1049l" + plainText},
		{"cancelled", "\x1b[?10\x1849h", false, true, ""},
		{"full reset", "\x1b[?1049h\x1b[?25l\x1bc", false, true, ""},
		{"character set", "\x1b(0lqk\x1b(B", false, true, ""},
		{"control inside", "\x1b[?10\r49h", true, true, "\x1b[?1049l" + plainText},
		{"cursor hidden and shown", "\x1b[?25l\x1b[?25h", false, true, ""},
		{"cursor hidden, mouse", "\x1b[?25l\x1b[?1006;1002h", false, true, "\x1b[?25h\x1b[?1006l\x1b[?1002l" + plainText},
		{"open escape", "x\x1b", false, false, breakOff + plainText},
		{"open sequence", "x\x1b[?104", false, false, breakOff + plainText},
		{"open title", "\x1b]0;never", false, false, breakOff + plainText},
		{"open character", "gr\xc3", false, false, breakOff + plainText},
		{"whole character", "gr\xc3\xb6\xe2\x82\xac\xf0\x9f\x98\x80", false, true, ""},
		{"broken characters", "\xc3a\x80\xff", false, true, ""},
		{"too many numbers", "\x1b[?1;2;3;4;5;6;7;8;9;10;11;12;13;14;15;16;1049h", false, true, "\x1b[?1l\x1b[?9l" + plainText},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var tr tracker
			tr.feed([]byte(test.out))
			if tr.alt != test.alt || tr.quiet() != test.quiet || string(tr.undo()) != test.undo {
				t.Errorf("alternate %v, quiet %v, undo %q; want %v, %v, %q", tr.alt, tr.quiet(), tr.undo(), test.alt, test.quiet, test.undo)
			}
		})
	}
}

// Whatever a program writes, undo brings the terminal back, and the tracker's memory stays bounded.
func FuzzTracker(f *testing.F) {
	f.Add([]byte("\x1b[?1049h\x1b[?25l\x1b]0;title\x07text\x1bP"))
	f.Add([]byte("\x1b[?1;1000;2004h\xf0\x9f"))
	f.Fuzz(func(t *testing.T, out []byte) {
		var tr tracker
		tr.feed(out)
		if len(tr.params) > maxParams || len(tr.changed) > 16 {
			t.Fatalf("%d numbers, %d modes", len(tr.params), len(tr.changed))
		}
		slices.Sort(tr.changed)
		if len(slices.Compact(slices.Clone(tr.changed))) != len(tr.changed) {
			t.Fatalf("modes twice: %v", tr.changed)
		}
		tr.feed(tr.undo())
		if !tr.quiet() || tr.alt || len(tr.changed) > 0 {
			t.Fatalf("undo leaves %+v", tr)
		}
	})
}

func TestTrackerInLine(t *testing.T) {
	tests := []struct {
		name, out string
		want      bool
	}{
		{"nothing", "", false},
		{"whole line", "hello\r\n", false},
		{"part of a line", "hello\r\nhal", true},
		{"progress", "\r\n 50%\r", true},
		{"modes after the line", "hello\r\n\x1b[?2004l\r\x1b[0m\x1b[K", false},
		{"title after the line", "hello\r\n\x1b]0;title\x07\a", false},
		{"prompt in colour", "\r\n\x1b[?2004h\x1b[1;32m$\x1b[0m ", true},
		{"cursor moved", "hello\r\n\x1b[5;10H", true},
		{"tab", "\n\t", true},
		{"character of more bytes", "\n\xc3\xb6", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var tr tracker
			tr.feed([]byte(test.out))
			if tr.inLine != test.want {
				t.Errorf("in a line %v, want %v", tr.inLine, test.want)
			}
		})
	}
}
