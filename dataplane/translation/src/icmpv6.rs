//! ICMPv6 for a translator (RFC 4443): errors that quote a packet of a flow are translated outside and inside; errors, echo
//! replies and resets of our own are written.

mod answer;
mod translate;

pub use answer::{
    LONGEST_ERROR6, RESET6_LENGTH, echo_reply6, icmpv6_error, may_answer6, return_to_source6, tcp_reset6,
};
pub use translate::{Quote6, quote6, translate_error6};

#[cfg(test)]
mod tests;
