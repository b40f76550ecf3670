package why

import "strings"

// KubectlProgram is how the answers name themselves in a cluster that Berth may not even be in.
const KubectlProgram = "kubectl berth why"

// elsewhere says that the question is asked in any cluster: there is no journal, and nobody is asked but the API.
func (s *Sources) elsewhere() bool { return s.Program != "" }

// words replaces the names of Berth's own commands, which a cluster without Berth does not have.
func (s *Sources) words() *strings.Replacer {
	return strings.NewReplacer("berth why", s.Program, " (berth status shows what is free)", "", "See berth status.", "See whether berth controller runs.", "Start one: berth up, or berth node.", "Start one, or see why it has not joined: kubectl get nodes.")
}

// retell puts the program's name into all that is told.
func (j *Journey) retell(s *Sources) {
	if !s.elsewhere() {
		return
	}
	words := s.words()
	trouble := func(w *Waiting, p *Problem) {
		if w != nil {
			w.For = words.Replace(w.For)
		}
		if p != nil && p.What != p.Message { // words of others stay as they are
			p.What = words.Replace(p.What)
		}
		if p != nil {
			p.Advice = words.Replace(p.Advice)
		}
	}
	trouble(j.Waiting, j.Problem)
	for i := range j.Volumes {
		trouble(j.Volumes[i].Waiting, j.Volumes[i].Problem)
	}
}
