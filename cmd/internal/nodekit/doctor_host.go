package nodekit

// RoomForUpdate is the free space below which a data directory is reported: the
// staged release, and the one before it.
const RoomForUpdate = 64 << 20 // bytes
