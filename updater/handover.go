package updater

// envHandover carries a handover to the binary that takes over.
const envHandover = "MOULT_SUPERVISOR_HANDOVER"
