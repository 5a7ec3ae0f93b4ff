//! `zenith/limits`: up to which block each fork's pages are to be fetched.

use std::sync::atomic::{AtomicU32, Ordering};
use zenith_pgformat::{Fork, Oid, RelNode};

const MAGIC: &[u8; 8] = b"ZENLIMIT";
const FORMAT: u32 = 1;
/// Bytes before the slots.
pub const HEADER_BYTES: usize = 24;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 24;
/// The bytes of a slot that never change: key and size.
const FIXED_BYTES: usize = 20;
/// The bytes of the header that the checksum covers.
const COVERED_BYTES: usize = 16;

/// A fork, and its length at the directory's LSN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slot {
    /// Tablespace, database, relfilenode.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// In blocks.
    pub blocks: u32,
}

/// A file that does not hold what a restorer wrote.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("zenith/limits is damaged ({0}): restore the directory anew")]
pub struct BadLimits(&'static str);

type Place = [u32; 4];

fn place(node: RelNode, fork: Fork) -> Place {
    [node.spc, node.db, node.rel, fork as u32]
}

/// The file's content; each fork's limit is its length. Of a fork that comes twice the first slot counts.
pub fn encode(slots: impl IntoIterator<Item = Slot>) -> Vec<u8> {
    let mut slots: Vec<(Place, u32)> =
        slots.into_iter().map(|slot| (place(slot.node, slot.fork), slot.blocks)).collect();
    slots.sort_by_key(|(place, _)| *place);
    slots.dedup_by_key(|(place, _)| *place);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + slots.len() * SLOT_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(slots.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&[0; HEADER_BYTES - COVERED_BYTES]);
    for (place, blocks) in slots {
        for number in place.into_iter().chain([blocks, blocks]) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    let crc = checksum(&bytes);
    bytes[COVERED_BYTES..COVERED_BYTES + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Of what never changes.
fn checksum(bytes: &[u8]) -> u32 {
    let covered = bytes.get(..COVERED_BYTES).unwrap_or_default();
    let slots = bytes.get(HEADER_BYTES..).unwrap_or_default().chunks_exact(SLOT_BYTES);
    slots.fold(crc32c::crc32c(covered), |crc, slot| crc32c::crc32c_append(crc, &slot[..FIXED_BYTES]))
}

/// The limits of a file that others may lower at the same time: mapped into memory, as little-endian words.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    words: &'a [AtomicU32],
}

/// A slot of [`Limits`].
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    words: &'a [AtomicU32; SLOT_BYTES / 4],
    /// Where in the file its limit lies, in bytes.
    pub offset: usize,
}

impl<'a> Limits<'a> {
    /// Checks all of a file.
    ///
    /// # Errors
    /// Anything that [`encode`] does not make, lowered limits aside.
    pub fn check(words: &'a [AtomicU32]) -> Result<Limits<'a>, BadLimits> {
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect();
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        if !bytes.starts_with(MAGIC) {
            return Err(BadLimits("it does not begin as one"));
        }
        if word(8) != Some(FORMAT) {
            return Err(BadLimits("its format is not known"));
        }
        let count = word(12).map_or(usize::MAX, |count| count as usize);
        if count.checked_mul(SLOT_BYTES).and_then(|slots| slots.checked_add(HEADER_BYTES))
            != Some(bytes.len())
        {
            return Err(BadLimits("its length is wrong"));
        }
        if word(COVERED_BYTES) != Some(checksum(&bytes)) || word(20) != Some(0) {
            return Err(BadLimits("its checksum is wrong"));
        }
        let limits = Limits { words };
        let slots = || (0..count).filter_map(|number| limits.slot(number));
        if !slots().is_sorted_by(|one, next| one.place() < next.place()) {
            return Err(BadLimits("its slots are not in order"));
        }
        if slots().any(|slot| slot.get() > slot.size()) {
            return Err(BadLimits("a limit lies above its fork's size"));
        }
        Ok(limits)
    }

    /// How many forks there are.
    pub fn len(&self) -> usize {
        self.words.len().saturating_sub(HEADER_BYTES / 4) / (SLOT_BYTES / 4)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A fork's slot. Looks it up by halves, without allocating.
    pub fn find(&self, node: RelNode, fork: Fork) -> Option<Limit<'a>> {
        let wanted = place(node, fork);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let slot = self.slot(middle)?;
            match slot.place().cmp(&wanted) {
                std::cmp::Ordering::Equal => return Some(slot),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Every slot, in order.
    pub fn iter(&self) -> impl Iterator<Item = Limit<'a>> + use<'a> {
        let limits = *self;
        (0..limits.len()).filter_map(move |number| limits.slot(number))
    }

    /// The slots of a database, in every tablespace.
    pub fn of_database(&self, db: Oid) -> impl Iterator<Item = Limit<'a>> + use<'a> {
        self.iter().filter(move |slot| slot.node().db == db)
    }

    fn slot(&self, number: usize) -> Option<Limit<'a>> {
        let offset = HEADER_BYTES + number * SLOT_BYTES;
        let words = self.words.get(offset / 4..)?.first_chunk()?;
        Some(Limit { words, offset: offset + FIXED_BYTES })
    }
}

impl Limit<'_> {
    fn word(&self, number: usize) -> u32 {
        u32::from_le(self.words[number].load(Ordering::Acquire))
    }

    fn place(&self) -> Place {
        [self.word(0), self.word(1), self.word(2), self.word(3)]
    }

    /// Its relation.
    pub fn node(&self) -> RelNode {
        RelNode { spc: self.word(0), db: self.word(1), rel: self.word(2) }
    }

    /// Its fork; `None` for a number that no fork has.
    pub fn fork(&self) -> Option<Fork> {
        u8::try_from(self.word(3)).ok().and_then(Fork::from_number)
    }

    /// The fork's length at the directory's LSN, in blocks.
    pub fn size(&self) -> u32 {
        self.word(4)
    }

    /// Its limit: blocks from here on are never fetched.
    pub fn get(&self) -> u32 {
        self.word(5)
    }

    /// Lowers the limit, unless it is as low already; whether it did. It still has to be synced.
    pub fn lower(&self, to: u32) -> bool {
        let lowered = self.words[5].fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (u32::from_le(word) > to).then_some(to.to_le())
        });
        lowered.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(rel: u32, fork: Fork, blocks: u32) -> Slot {
        Slot { node: RelNode { spc: 1663, db: 5, rel }, fork, blocks }
    }

    /// As a mapped file is seen.
    fn mapped(bytes: &[u8]) -> Vec<AtomicU32> {
        let words = bytes.chunks(4).map(|word| {
            let mut whole = [0; 4];
            whole[..word.len()].copy_from_slice(word);
            AtomicU32::new(u32::from_ne_bytes(whole))
        });
        words.collect()
    }

    fn some() -> Vec<u8> {
        let other = Slot { node: RelNode { spc: 1663, db: 4, rel: 9 }, fork: Fork::Main, blocks: 1 };
        encode([slot(3, Fork::Vm, 1), slot(3, Fork::Main, 7), slot(2, Fork::Main, 0), other])
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let bytes = encode([slot(0x4000, Fork::Vm, 9)]);
        assert_eq!(bytes[..16], *b"ZENLIMIT\x01\0\0\0\x01\0\0\0");
        let covered = [&bytes[..16], &bytes[24..44]].concat();
        assert_eq!(bytes[16..20], crc32c::crc32c(&covered).to_le_bytes());
        assert_eq!(bytes[20..], *b"\0\0\0\0\x7F\x06\0\0\x05\0\0\0\0\x40\0\0\x02\0\0\0\x09\0\0\0\x09\0\0\0");
    }

    #[test]
    fn each_fork_is_found_with_its_limit_and_others_are_not() {
        let words = mapped(&some());
        let limits = Limits::check(&words).expect("whole");
        assert_eq!(limits.len(), 4);
        let get = |rel, fork| limits.find(slot(rel, fork, 0).node, fork).map(|limit| limit.get());
        assert_eq!((get(2, Fork::Main), get(3, Fork::Main), get(3, Fork::Vm)), (Some(0), Some(7), Some(1)));
        assert_eq!((get(1, Fork::Main), get(2, Fork::Vm), get(4, Fork::Main)), (None, None, None));
        assert_eq!(limits.of_database(5).count(), 3);
        let none = mapped(&encode([]));
        assert!(Limits::check(&none).expect("whole").is_empty());
    }

    #[test]
    fn a_limit_is_only_ever_lowered() {
        let words = mapped(&some());
        let limits = Limits::check(&words).expect("whole");
        let limit = limits.find(slot(3, Fork::Main, 0).node, Fork::Main).expect("there");
        assert!(limit.lower(4) && !limit.lower(4) && !limit.lower(5));
        assert_eq!((limit.get(), limit.size(), limit.fork()), (4, 7, Some(Fork::Main)));
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        assert_eq!(bytes[limit.offset..limit.offset + 4], 4u32.to_le_bytes());
        assert_eq!(
            Limits::check(&mapped(&bytes))
                .expect("lowered")
                .find(limit.node(), Fork::Main)
                .expect("there")
                .get(),
            4
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed_that_is_not_a_lower_limit() {
        let whole = some();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let in_limit = bit / 8 >= HEADER_BYTES && (bit / 8 - HEADER_BYTES) % SLOT_BYTES >= FIXED_BYTES;
            let words = mapped(&bytes);
            let checked = Limits::check(&words);
            let raised = checked.is_err();
            assert!(raised || in_limit, "bit {bit}");
        }
        for cut in (0..whole.len()).step_by(4) {
            assert!(Limits::check(&mapped(&whole[..cut])).is_err(), "{cut} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0u32..9) {
            let _ = Limits::check(&mapped(&bytes)).map(|limits| limits.iter().count());
            let bytes = [&b"ZENLIMIT\x01\0\0\0"[..], &count.to_le_bytes(), &bytes].concat();
            let _ = Limits::check(&mapped(&bytes)).map(|limits| limits.iter().count());
        }
    }
}
