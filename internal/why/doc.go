// Package why says where a volume is on its way, how long each step took, what it waits for now, and what to do.
//
// What flows in: API objects and their events, and, where there is one, the journal of package trace and the list of
// operations under way. What flows out: a Journey per question, a Status of the whole, as structs and as text. It
// only reads. It works from the API objects, their managed fields and events alone when there is no journal, so that it can be asked
// in any cluster (Sources.Program; `kubectl berth why`); times are then whole seconds. ExplainAll answers for many pods, one line each.
//
// Explain first collects (gather.go), then lays the journal's entries and what the objects show into steps
// (timeline.go), then names what is waited for and the last error (waiting.go), and puts it into plain words with
// advice (causes.go). All but the collecting is free of clock and client.
package why
