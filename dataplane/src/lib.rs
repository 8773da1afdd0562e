//! The role that moves packets: startup, workers, supervisor, neighbours, inspection.
