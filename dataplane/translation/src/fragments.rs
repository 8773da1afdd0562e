//! Fragments in translation: which parts of a datagram have come, cutting a packet into fragments, and the
//! identifications of what leaves.

mod coverage;
mod identification;
mod pieces;

pub use coverage::{Coverage, MOST_FRAGMENTS, Seen};
pub use identification::Identifications;
pub use pieces::{Pieces, complete_transport_checksum, identify, identify6};
