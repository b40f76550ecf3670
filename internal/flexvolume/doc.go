// Package flexvolume is the driver's side of the FlexVolume protocol: one small program that is executed for each call-out
// and answers with one JSON object on stdout.
//
// What flows in: argv, `<driver> <call-out> <arguments>` (upstream pkg/volume/flexvolume/driver-call.go). What flows out: a
// Status and the exit code that agrees with it. Serve does that part; what a call-out means is a Driver's, one package each:
//
//	nfs/ cifs/ lvm/ block/   the drivers; cmd/berth-flexvolume has their table, argv[0] chooses
//	install/                 puts the program into a node's plugin directory
//
// The program lives for some milliseconds a call, so nothing here or below may link client-go, the API's types or net/http
// (a test reads the list of packages), and no package may do work before main.
//
// It must never write to stderr: upstream reads stdout and stderr as one text, and a stray word makes the answer unreadable.
package flexvolume
