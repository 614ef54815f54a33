package netname

import (
	"strconv"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// ParsePort reads a port of 1 to 65535 in plain decimal. Signs, leading zeros, service names and numbers that would wrap around are errors.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fault.New(fault.Invalid, "%.20q is no port", s).WithHint("write a number from 1 to 65535")
	}
	return uint16(n), nil
}
