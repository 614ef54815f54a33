#include "textflag.h"

// idle is a signal handler that returns. The kernel has put the address of the signal's end into the link register.
TEXT idle<>(SB),NOSPLIT|NOFRAME,$0-0
	RET

// func idleHandler() uintptr
TEXT ·idleHandler(SB),NOSPLIT,$0-8
	MOVD	$idle<>(SB), R0
	MOVD	R0, ret+0(FP)
	RET
