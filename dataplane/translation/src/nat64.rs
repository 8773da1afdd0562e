//! Translation between the versions of IP (RFC 7915), for IPv6 clients of IPv4 targets (RFC 6146).
//!
//! A packet is a transport segment behind a header that is written anew: what lies in front of the transport header goes,
//! the new IP header takes its place, and the frame begins with it until a hop's Ethernet header is put in front. All
//! headers keep their meaning as far as the other version has one.

mod error;
mod packet;

pub use error::{LONGEST_TRANSLATED_ERROR, Mtus, TranslatedQuote, error_to_ipv4, error_to_ipv6};
pub use packet::{Nat64Error, NewEnds, to_ipv4, to_ipv6};

#[cfg(test)]
mod tests;
