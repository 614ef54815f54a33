package boot

// The changes of an overlay workspace are sent as a tar stream (PAX) of the overlay's upper directory: names are relative to the workspace, parents come before what is
// in them, the workspace itself is the entry ".". Owners are ids inside. Besides directories, regular files and symbolic links there are:
//   - a deletion (the overlay's whiteout): a character device with the numbers 0 and 0;
//   - a further name of a file that came before: a hard link, whose target is the name under which it came;
//   - FIFOs, and in their place also sockets, which a tar stream cannot hold: they are never taken over, and are there to be named.
//
// A directory whose record Opaque is "y" hides all that the workspace has in its place.
//
// A file with holes has a record Map: its length, and then the offset and length of each piece of data, all in decimal and separated by commas. The entry's own size and
// bytes are those of the pieces, one after the other. The pieces do not overlap, lie in order and within the length, and are MaxPieces at most; what is between them is zero.
const (
	Opaque = "COFFERDAM.opaque"
	Map    = "COFFERDAM.map"
	// MaxPieces is how many pieces of data a file with holes has at most; one with more is sent with its holes.
	MaxPieces = 1024
)
