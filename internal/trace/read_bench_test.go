package trace

import "testing"

// BenchmarkRead reads a full journal (8 segments) as `berth why` does, without and with names to look for.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	j, err := Open(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	for range 130000 {
		j.Record(testEntry("pvc-92764029-0624-4bf5-b84d-cb33ad71e50e"))
		if len(j.entries) > queueLength/2 {
			j.Flush()
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	for name, filter := range map[string]Filter{"all": {}, "naming": {Naming: []string{"pvc-none"}}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Read(dir, filter); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
