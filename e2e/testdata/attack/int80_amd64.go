package main

// int80 makes a system call through the table of 32-bit programs.
func int80(number uintptr) uintptr
