//! `zenith/journal`: the pages that the filler is about to write into relation files.
//!
//! A page that is torn while it is written into a hole could not be fetched again: it is not all zeros. So a batch goes here first,
//! and is synced; then into its file, which is synced; then it is retired, by a count of 0. Replaying a batch that is not retired
//! before anything else touches its blocks makes them whole.

use zenith_pgformat::{BLCKSZ, Fork, Page, RelNode};

/// The file's path.
pub const JOURNAL: &str = "zenith/journal";
/// The most pages of a batch: 4 MB.
pub const MAX_PAGES: usize = 512;

const MAGIC: &[u8; 8] = b"ZENJOURN";
const FORMAT: u32 = 1;
/// Where the count stands. Four bytes of one sector, which no crash tears.
pub const COUNT_AT: u64 = 12;
const ENTRIES_AT: usize = 64;
const ENTRY_BYTES: usize = 20;
const PAGES_AT: usize = 16 << 10;

/// A page, and where it belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// The block.
    pub block: u32,
    /// The page.
    pub page: Box<Page>,
}

/// A file's content: a batch of at most [`MAX_PAGES`]; further ones are left out.
pub fn encode(batch: &[Entry]) -> Vec<u8> {
    let batch = batch.get(..MAX_PAGES).unwrap_or(batch);
    let mut bytes = Vec::with_capacity(PAGES_AT + batch.len() * BLCKSZ);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(batch.len()).unwrap_or(0).to_le_bytes());
    bytes.resize(ENTRIES_AT, 0);
    for entry in batch {
        let RelNode { spc, db, rel } = entry.node;
        for number in [spc, db, rel, entry.fork as u32, entry.block] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes.resize(PAGES_AT, 0);
    batch.iter().for_each(|entry| bytes.extend_from_slice(&entry.page[..]));
    let crc = checksum(&bytes);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Of everything but itself.
fn checksum(bytes: &[u8]) -> u32 {
    let head = crc32c::crc32c(bytes.get(..16).unwrap_or_default());
    crc32c::crc32c_append(head, bytes.get(20..).unwrap_or_default())
}

/// The batch that a file holds. None if it is retired, or was not written to its end: then nothing of it has reached its file.
pub fn decode(bytes: &[u8]) -> Vec<Entry> {
    let word = |at: usize| {
        let word = bytes.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*word))
    };
    let count = word(COUNT_AT as usize).map_or(0, |count| count as usize);
    let end = PAGES_AT + count.min(MAX_PAGES) * BLCKSZ;
    let whole = bytes.get(..end).filter(|whole| {
        whole.starts_with(MAGIC) && word(8) == Some(FORMAT) && word(16) == Some(checksum(whole))
    });
    if whole.is_none() || count == 0 || count > MAX_PAGES {
        return Vec::new();
    }
    let entry = |number: usize| {
        let at = ENTRIES_AT + number * ENTRY_BYTES;
        let node = RelNode { spc: word(at)?, db: word(at + 4)?, rel: word(at + 8)? };
        let fork = u8::try_from(word(at + 12)?).ok().and_then(Fork::from_number)?;
        let page: &Page = bytes.get(PAGES_AT + number * BLCKSZ..)?.first_chunk()?;
        Some(Entry { node, fork, block: word(at + 16)?, page: Box::new(*page) })
    };
    (0..count).map_while(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(count: u32) -> Vec<Entry> {
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let entry = |block: u32| Entry {
            node,
            fork: Fork::Vm,
            block,
            page: Box::new([(block % 250) as u8 + 1; BLCKSZ]),
        };
        (0..count).map(entry).collect()
    }

    #[test]
    fn a_batch_is_read_back_and_one_that_is_retired_is_not() {
        for count in [1, 7, MAX_PAGES as u32] {
            let mut bytes = encode(&batch(count));
            assert_eq!(decode(&bytes), batch(count));
            // What a longer batch left behind does not matter.
            bytes.extend([7; 9000]);
            assert_eq!(decode(&bytes), batch(count));
            bytes[COUNT_AT as usize..][..4].copy_from_slice(&0u32.to_le_bytes());
            assert_eq!(decode(&bytes), []);
        }
        assert_eq!(decode(&encode(&[])), []);
        assert_eq!(decode(&[]), []);
    }

    #[test]
    fn a_batch_that_was_not_written_to_its_end_is_none() {
        let whole = encode(&batch(3));
        for sector in (0..whole.len()).step_by(512) {
            let mut torn = whole.clone();
            let end = torn.len().min(sector + 512);
            // An earlier batch's, say.
            torn[sector..end].iter_mut().for_each(|byte| *byte ^= 0x55);
            assert_eq!(decode(&torn), [], "sector at {sector}");
            assert_eq!(decode(&whole[..sector]), []);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), count: u32) {
            let _ = decode(&bytes);
            let _ = decode(&[&b"ZENJOURN\x01\0\0\0"[..], &count.to_le_bytes(), &bytes].concat());
        }
    }
}
