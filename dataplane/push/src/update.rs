//! An update is a change in parts: cut on control's side, put together on the gateway's.

use postern_tables::{Change, Resource, ResourceKey};
use prost::Message;

use crate::proto::{Key, Resource as ResourceMessage, Update};
use crate::{ConversionError, PART_BYTES};

/// Cuts a change into parts of about [`PART_BYTES`], made one by one; the last one is complete and carries the digest.
/// There is always one.
pub fn parts(
    generation: u64,
    full: bool,
    digest: Vec<u8>,
    changed: impl Iterator<Item = ResourceMessage>,
    removed: impl Iterator<Item = Key>,
) -> impl Iterator<Item = Update> {
    let mut changed = changed.peekable();
    let mut removed = removed.peekable();
    let mut digest = Some(digest);
    std::iter::from_fn(move || {
        digest.as_ref()?;
        let mut part = Update { generation, full, ..Update::default() };
        let mut bytes = 0;
        while bytes < PART_BYTES {
            // What is removed goes first: it is small, and names may be used anew.
            if let Some(key) = removed.next() {
                bytes += key.encoded_len() + FRAMING;
                part.removed.push(key);
            } else if let Some(resource) = changed.next() {
                bytes += resource.encoded_len() + FRAMING;
                part.changed.push(resource);
            } else {
                break;
            }
        }
        if removed.peek().is_none() && changed.peek().is_none() {
            part.complete = true;
            part.digest = digest.take().unwrap_or_default();
        }
        Some(part)
    })
}

/// Tag and length of an element of a list, in bytes, at most.
const FRAMING: usize = 6;

/// Puts the parts of updates together.
#[derive(Debug, Default)]
pub struct Assembler {
    begun: Option<Assembled>,
}

/// A whole update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assembled {
    /// The generation that the gateway has when it is applied.
    pub generation: u64,
    /// To be kept with what is applied, and said in the next Hello.
    pub digest: Vec<u8>,
    /// The change; nothing in it, and not full: what the gateway has is confirmed.
    pub change: Change,
}

/// Parts that do not make an update. The stream has no meaning any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// A part of another update in between.
    #[error("a part of generation {part} came before generation {begun} was complete")]
    Mixed {
        /// The generation whose parts are missing.
        begun: u64,
        /// The one that came.
        part: u64,
    },
    /// A part with an object that stands for nothing.
    #[error("generation {generation}: {error}")]
    Conversion {
        /// The generation.
        generation: u64,
        /// What is wrong.
        #[source]
        error: ConversionError,
    },
}

impl Assembler {
    /// Takes the next part, and gives the update when it is complete.
    ///
    /// # Errors
    /// When the part belongs to another update or carries what this version does not know. What was collected is gone.
    pub fn add(&mut self, part: Update) -> Result<Option<Assembled>, AssemblyError> {
        let generation = part.generation;
        let mut update = match self.begun.take() {
            None => Assembled {
                generation,
                change: Change { full: part.full, ..Change::default() },
                ..Assembled::default()
            },
            Some(begun) if (begun.generation, begun.change.full) == (generation, part.full) => begun,
            Some(begun) => return Err(AssemblyError::Mixed { begun: begun.generation, part: generation }),
        };
        let conversion = |error| AssemblyError::Conversion { generation, error };
        for resource in part.changed {
            update.change.changed.push(Resource::try_from(resource).map_err(conversion)?);
        }
        for key in part.removed {
            update.change.removed.push(ResourceKey::try_from(key).map_err(conversion)?);
        }
        if part.complete {
            update.digest = part.digest;
            return Ok(Some(update));
        }
        self.begun = Some(update);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use postern_tables::ResourceKind;
    use postern_tables::declaration::{Endpoint, Vpc};

    use super::*;

    fn endpoint(number: usize) -> Resource {
        let id = format!("vpce-{number:017x}");
        let (vpc, service) = ("vpc-0123456789abcdef0".to_owned(), "vpce-svc-0123456789abcdef0".to_owned());
        Resource::Endpoint(Endpoint { id, vpc, service, addresses: vec!["10.9.8.7".to_owned()], ..Endpoint::default() })
    }

    #[test]
    fn a_large_change_goes_in_parts_and_arrives_as_it_was() {
        let changed: Vec<Resource> = (0..40_000).map(endpoint).collect();
        let removed = vec![ResourceKey { kind: ResourceKind::Vpc, name: "vpc-old".to_owned() }];
        let messages = changed.iter().map(|resource| ResourceMessage::try_from(resource).unwrap());
        let parts: Vec<Update> = parts(7, true, vec![1, 2], messages, removed.iter().map(Key::from)).collect();
        assert!(parts.len() > 2, "{} parts", parts.len());
        let mut assembler = Assembler::default();
        let mut whole = None;
        for part in parts {
            assert!(part.encoded_len() < PART_BYTES + 1024);
            assert!(whole.is_none(), "complete before its end");
            whole = assembler.add(part).unwrap();
        }
        let change = Change { full: true, changed, removed };
        assert_eq!(whole.unwrap(), Assembled { generation: 7, digest: vec![1, 2], change });
    }

    #[test]
    fn a_change_of_nothing_is_one_complete_part() {
        let parts: Vec<Update> = parts(3, false, vec![9], std::iter::empty(), std::iter::empty()).collect();
        assert_eq!(parts, [Update { generation: 3, complete: true, digest: vec![9], ..Update::default() }]);
    }

    #[test]
    fn parts_of_two_updates_are_not_mixed() {
        let mut assembler = Assembler::default();
        let vpc = Resource::Vpc(Vpc { id: "vpc-a".to_owned() });
        let changed = vec![ResourceMessage::try_from(&vpc).unwrap()];
        assert_eq!(assembler.add(Update { generation: 1, changed, ..Update::default() }), Ok(None));
        let error = assembler.add(Update { generation: 2, complete: true, ..Update::default() }).unwrap_err();
        assert_eq!(error.to_string(), "a part of generation 2 came before generation 1 was complete");
    }
}
