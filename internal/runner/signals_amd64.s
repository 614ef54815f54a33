#include "textflag.h"

// idle is a signal handler that returns. The kernel has put the address of the signal's end on the stack.
TEXT idle<>(SB),NOSPLIT|NOFRAME,$0-0
	RET

// func idleHandler() uintptr
TEXT ·idleHandler(SB),NOSPLIT,$0-8
	MOVQ	$idle<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
