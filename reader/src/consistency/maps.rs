//! Bits of visibility maps against those of the server. Pure.
//!
//! A bit too many is a wrong answer of an index-only scan; one too few costs time, and happens: a page copied by a base backup
//! may be newer than the record that sets the bit. The server clears a bit just before it logs the record that says so, so
//! that an image may lack bits whose clearing is yet to come.

use super::judge::excess_bits;
use super::report::{Place, Problem, Tally};
use std::collections::BTreeMap;
use zenith_layers::Key;
use zenith_pgformat::wal::Record;
use zenith_pgformat::{Lsn, Page};

/// So much WAL after the image the clearing of a bit must have been logged: no server stands still in a critical section for
/// longer than others take to write a segment.
const GRACE: u64 = 16 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct MapWatch {
    waiting: BTreeMap<Key, Vec<Excess>>,
    off: bool,
}

/// Bits that the server's page had not.
#[derive(Debug)]
struct Excess {
    offset: usize,
    bits: u8,
    record: Record,
}

impl MapWatch {
    /// Without `full_page_writes` a crash of the server loses bits of its own maps: nothing can be told from them any more.
    pub(super) fn turn_off(&mut self) {
        self.off = true;
        self.waiting.clear();
    }

    /// A page after a record that logged the server's.
    pub(super) fn compare(&mut self, key: Key, record: &Record, ours: &Page, theirs: &Page) {
        if self.off {
            return;
        }
        let known = self.waiting.entry(key).or_default();
        for (offset, bits) in excess_bits(ours, theirs) {
            let waiting = known.iter().filter(|excess| excess.offset == offset);
            let bits = bits & !waiting.fold(0, |all, excess| all | excess.bits);
            if bits != 0 {
                // Only what names the record: its bytes would keep their segment in memory.
                let record = Record {
                    raw: bytes::Bytes::new(),
                    blocks: Vec::new(),
                    main_data: bytes::Bytes::new(),
                    ..record.clone()
                };
                known.push(Excess { offset, bits, record });
            }
        }
    }

    /// A page after a record that clears bits.
    pub(super) fn cleared(&mut self, key: Key, page: &Page) {
        if let Some(known) = self.waiting.get_mut(&key) {
            known.iter_mut().for_each(|excess| excess.bits &= page.get(excess.offset).copied().unwrap_or(0));
            known.retain(|excess| excess.bits != 0);
        }
    }

    /// A page is gone.
    pub(super) fn gone(&mut self, key: Key) {
        self.waiting.remove(&key);
    }

    /// The WAL up to `lsn` was seen: what should have been cleared by now is a difference.
    pub(super) fn settle(&mut self, lsn: Lsn, tally: &mut Tally) {
        self.waiting.retain(|key, known| {
            known.retain(|excess| {
                let overdue = lsn.since(excess.record.end) > GRACE;
                if overdue {
                    tally.difference(
                        Place::Record(&excess.record),
                        *key,
                        Problem::MapBits { offset: excess.offset },
                    );
                }
                !overdue
            });
            !known.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use zenith_pgformat::wal::RmgrId;
    use zenith_pgformat::wal::encode::encode_record;
    use zenith_pgformat::{BLCKSZ, Fork, RelNode};

    fn key() -> Key {
        Key::rel_block(RelNode { spc: 1663, db: 5, rel: 16384 }, Fork::Vm, 0)
    }

    fn visible() -> Record {
        let raw = encode_record(RmgrId::HEAP2, 0x40, 0, Lsn(8), &[0; 5]);
        Record::decode(Bytes::from(raw), Lsn(0x100), Lsn(0x200)).expect("sound")
    }

    fn page(byte: u8) -> Page {
        let mut page = [0; BLCKSZ];
        page[100] = byte;
        page
    }

    /// Differences long after the record.
    fn settled(watch: &mut MapWatch) -> Vec<usize> {
        let mut tally = Tally::new(10);
        watch.settle(Lsn(0x200 + GRACE), &mut tally);
        assert_eq!(tally.check.differences, 0, "not yet");
        watch.settle(Lsn(0x201 + GRACE), &mut tally);
        let offset = |difference: &super::super::report::Difference| match difference.problem {
            Problem::MapBits { offset } => offset,
            _ => 0,
        };
        tally.finish().first.iter().map(offset).collect()
    }

    #[test]
    fn a_bit_too_many_is_a_difference_and_one_too_few_is_not() {
        let mut watch = MapWatch::default();
        watch.compare(key(), &visible(), &page(0b0011), &page(0b1111));
        assert!(settled(&mut watch).is_empty());
        watch.compare(key(), &visible(), &page(0b0111), &page(0b0011));
        watch.compare(key(), &visible(), &page(0b0111), &page(0b0011));
        assert_eq!(settled(&mut watch), [100], "once");
    }

    #[test]
    fn a_bit_that_a_record_clears_soon_was_only_early_on_the_server() {
        let mut watch = MapWatch::default();
        watch.compare(key(), &visible(), &page(0b0111), &page(0b0000));
        watch.cleared(key(), &page(0b0011));
        assert_eq!(settled(&mut watch), [100], "two bits are left");
        watch.compare(key(), &visible(), &page(0b0100), &page(0b0000));
        watch.cleared(key(), &page(0));
        assert!(settled(&mut watch).is_empty());
        watch.compare(key(), &visible(), &page(0b0100), &page(0b0000));
        watch.gone(key());
        assert!(settled(&mut watch).is_empty());
    }

    #[test]
    fn without_full_page_writes_nothing_is_told_from_maps() {
        let mut watch = MapWatch::default();
        watch.compare(key(), &visible(), &page(0b0111), &page(0));
        watch.turn_off();
        watch.compare(key(), &visible(), &page(0b0111), &page(0));
        assert!(settled(&mut watch).is_empty());
    }
}
