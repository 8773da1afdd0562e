//! ICMP for a translator (RFC 5508): errors that quote a packet of a flow are translated outside and inside; errors, echo
//! replies and resets of our own are written.

mod answer;
mod translate;

pub(crate) use answer::write_reset;
pub use answer::{
    LONGEST_ERROR, RESET_LENGTH, echo_reply, icmp_error, may_answer, return_to_source, tcp_reset, tcp_reset_onward,
};
pub use translate::{Quote, QuoteError, quote, translate_error};

#[cfg(test)]
mod tests;
