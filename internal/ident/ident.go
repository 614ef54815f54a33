// Package ident (WORDS) holds the identifiers that cross room boundaries, each a type of its own.
package ident

import (
	"crypto/rand"
	"fmt"
)

// alphabet is base32 without letters that are read as digits; 32 symbols, so one random byte masks to one symbol without bias.
const alphabet = "abcdefghijkmnpqrstuvwxyz23456789"

// runLen gives 40 bits: with a million runs kept, a new one collides with probability 1e-6, and creation refuses an existing directory.
const runLen = 8

// Run names one run of one sandbox, from creation until its record is deleted.
type Run string

// NewRun returns a fresh random Run.
func NewRun() Run {
	var b [runLen]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return Run(b[:])
}

// ParseRun accepts exactly what NewRun makes.
func ParseRun(s string) (Run, error) {
	if len(s) != runLen {
		return "", fmt.Errorf("run %.20q: want %d characters, as printed by cofferdam ps --all", s, runLen)
	}
	for i := range len(s) {
		if !inAlphabet(s[i]) {
			return "", fmt.Errorf("run %q: character %q cannot occur in a run's name", s, s[i])
		}
	}
	return Run(s), nil
}

func inAlphabet(c byte) bool {
	for i := range len(alphabet) {
		if alphabet[i] == c {
			return true
		}
	}
	return false
}

// String returns the name.
func (r Run) String() string { return string(r) }
