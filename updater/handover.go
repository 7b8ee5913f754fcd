package updater

// envHandover carries a handover to the binary that takes over.
const envHandover = "MOULT_SUPERVISOR_HANDOVER"

// handover is what the next supervisor needs to go on with a running child.
type handover struct {
	PID     int    `json:"pid"`
	Send    int    `json:"send"` // descriptors
	Recv    int    `json:"recv"`
	Out     int    `json:"out"`
	Pending []byte `json:"pending,omitempty"` // the beginning of a message
}
