//! A window: as many consecutive records as are checked together, and what they do to each block. Pure.
//!
//! The steps of a block are worked out from the WAL alone, so that the values that the slicer stored can be held against
//! them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use zenith_layers::{Key, KeyClass, KeyRange};
use zenith_pgformat::wal::dbase::{self, DbaseRecord};
use zenith_pgformat::wal::smgr::{self, SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrRecord};
use zenith_pgformat::wal::xact::{self, XactRecord};
use zenith_pgformat::wal::{Record, RmgrId, WalError, heap};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode};
use zenith_redo::native::HEAP_BLOCKS_PER_MAP_PAGE;

/// Blocks in one window: 64 MB of pages.
const MAX_BLOCKS: usize = 8192;
/// Steps in one window.
const MAX_STEPS: usize = 1 << 16;
/// Bytes of records, and of pages that their images hold.
const MAX_BYTES: usize = 96 << 20;

/// What happens to one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A record refers to it: the record's and the reference's place.
    Reference { record: usize, block: usize },
    /// A record changes this page of a visibility map without a reference to it.
    MapEdit { record: usize },
    /// It is gone: truncated, or its relation or database dropped.
    Gone,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) records: Vec<Record>,
    pub(super) steps: BTreeMap<Key, Vec<Step>>,
    /// Blocks that were removed, for those that come later.
    removed_relations: HashMap<RelNode, Vec<KeyRange>>,
    removed_databases: Vec<KeyRange>,
    step_count: usize,
    bytes: usize,
    ended: bool,
}

impl Window {
    /// Whether it should be checked before another record is added.
    pub(super) fn is_full(&self) -> bool {
        self.ended
            || self.steps.len() >= MAX_BLOCKS
            || self.step_count >= MAX_STEPS
            || self.bytes >= MAX_BYTES
    }

    /// Where the last record ends.
    pub(super) fn end(&self) -> Option<Lsn> {
        self.records.last().map(|record| record.end)
    }

    /// Adds the next record.
    pub(super) fn add(&mut self, record: Record) -> Result<(), WalError> {
        let at = self.records.len();
        self.bytes += record.raw.len();
        for (index, block) in record.blocks.iter().enumerate() {
            // `XLOG_FPI_FOR_HINT` without its image does nothing; a free-space map is a hint.
            let nothing = record.rmgr == RmgrId::XLOG && block.image.is_none();
            if nothing || block.fork == Fork::Fsm {
                continue;
            }
            self.bytes += block.image.as_ref().map_or(0, |_| BLCKSZ);
            let key = Key::rel_block(block.node, block.fork, block.block);
            self.step(key, Step::Reference { record: at, block: index });
        }
        match record.rmgr {
            RmgrId::HEAP | RmgrId::HEAP2 => self.clear_visibility(at, &record)?,
            RmgrId::SMGR => {
                if let SmgrRecord::Truncate { node, blocks, flags } = smgr::parse(&record)? {
                    self.truncate(at, node, blocks, flags);
                }
            }
            RmgrId::XACT => {
                if let XactRecord::Commit(ended) | XactRecord::Abort(ended) = xact::parse(&record)? {
                    ended.dropped.into_iter().for_each(|node| self.drop_relation(node));
                }
            }
            RmgrId::DBASE => self.database(&record)?,
            _ => {}
        }
        self.records.push(record);
        Ok(())
    }

    fn step(&mut self, key: Key, step: Step) {
        self.step_count += 1;
        match self.steps.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().push(step),
            Entry::Vacant(new) => {
                let own = self.removed_relations.get(&key.node()).into_iter().flatten();
                let removed = own.chain(&self.removed_databases).any(|range| range.contains(&key));
                new.insert(if removed { vec![Step::Gone, step] } else { vec![step] });
            }
        }
    }

    fn clear_visibility(&mut self, at: usize, record: &Record) -> Result<(), WalError> {
        let mut pages: Vec<Key> = heap::parse(record)?
            .clears
            .iter()
            .map(|clear| Key::rel_block(clear.node, Fork::Vm, clear.heap_block / HEAP_BLOCKS_PER_MAP_PAGE))
            .collect();
        // One value, even if the record clears the bits of two blocks.
        pages.dedup();
        pages.into_iter().for_each(|page| self.step(page, Step::MapEdit { record: at }));
        Ok(())
    }

    fn truncate(&mut self, at: usize, node: RelNode, blocks: u32, flags: u32) {
        if flags & SMGR_TRUNCATE_HEAP != 0 {
            self.remove(KeyRange::blocks(node, Fork::Main, blocks, u32::MAX));
        }
        if flags & SMGR_TRUNCATE_VM != 0 {
            let (page, within) = (blocks / HEAP_BLOCKS_PER_MAP_PAGE, blocks % HEAP_BLOCKS_PER_MAP_PAGE);
            if within != 0 {
                self.step(Key::rel_block(node, Fork::Vm, page), Step::MapEdit { record: at });
            }
            let first_gone = page + u32::from(within != 0);
            self.remove(KeyRange::blocks(node, Fork::Vm, first_gone, u32::MAX));
        }
    }

    fn drop_relation(&mut self, node: RelNode) {
        self.remove(KeyRange {
            first: Key::rel_block(node, Fork::Main, 0),
            last: Key::rel_block(node, Fork::Init, u32::MAX),
        });
    }

    fn database(&mut self, record: &Record) -> Result<(), WalError> {
        match dbase::parse(record)? {
            // Its pages are the source's as they are now, which only a reader at this LSN knows.
            DbaseRecord::CreateFileCopy { .. } => self.ended = true,
            DbaseRecord::CreateWalLog(_) => {}
            DbaseRecord::Drop { db, tablespaces } => {
                for spc in tablespaces {
                    let range = KeyRange::database(KeyClass::RelBlock, spc, db);
                    self.removed_databases.push(range);
                    self.forget(&range);
                }
            }
        }
        Ok(())
    }

    /// Blocks of one relation are gone.
    fn remove(&mut self, range: KeyRange) {
        self.removed_relations.entry(range.first.node()).or_default().push(range);
        self.forget(&range);
    }

    fn forget(&mut self, range: &KeyRange) {
        for (_, steps) in self.steps.range_mut(range.first..=range.last) {
            steps.push(Step::Gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use zenith_pgformat::wal::encode::{Parts, encode_with_blocks};
    use zenith_pgformat::wal::{BlockImage, BlockRef};

    const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

    fn record(rmgr: RmgrId, info: u8, main_data: &[u8], blocks: &[BlockRef]) -> Record {
        let parts = Parts { rmgr, info, xid: 7, prev: Lsn(8), origin: None, top_xid: None, main_data };
        let raw = encode_with_blocks(&parts, blocks.iter());
        Record::decode(Bytes::from(raw), Lsn(0x100), Lsn(0x200)).expect("sound")
    }

    fn block(fork: Fork, block: u32) -> BlockRef {
        BlockRef { id: 0, node: NODE, fork, block, will_init: false, image: None, data: None }
    }

    /// A change of a block of the main fork.
    fn change(at: u32) -> Record {
        record(RmgrId::BTREE, 0, &[0; 2], &[block(Fork::Main, at)])
    }

    fn truncate(blocks: u32) -> Record {
        let mut data = blocks.to_le_bytes().to_vec();
        [NODE.spc, NODE.db, NODE.rel, 7].iter().for_each(|word: &u32| data.extend(word.to_le_bytes()));
        record(RmgrId::SMGR, 0x21, &data, &[])
    }

    fn window(records: Vec<Record>) -> Window {
        let mut window = Window::default();
        records.into_iter().for_each(|record| window.add(record).expect("sound"));
        window
    }

    fn steps(window: &Window, fork: Fork, block: u32) -> Vec<Step> {
        window.steps.get(&Key::rel_block(NODE, fork, block)).cloned().unwrap_or_default()
    }

    #[test]
    fn a_block_that_was_cut_off_begins_anew_whether_it_was_seen_before_or_not() {
        let window = window(vec![change(3), change(9), truncate(4), change(3), change(9), change(12)]);
        let reference = |record| Step::Reference { record, block: 0 };
        assert_eq!(steps(&window, Fork::Main, 3), [reference(0), reference(3)]);
        assert_eq!(steps(&window, Fork::Main, 9), [reference(1), Step::Gone, reference(4)]);
        assert_eq!(steps(&window, Fork::Main, 12), [Step::Gone, reference(5)]);
        // The map's only page stays, without the bits of what is gone.
        assert_eq!(steps(&window, Fork::Vm, 0), [Step::MapEdit { record: 2 }]);
    }

    #[test]
    fn a_cleared_bit_is_a_step_of_the_map_page_that_the_record_does_not_name() {
        // xl_heap_delete: xmax, offset, infobits, flags.
        let delete =
            |flags| record(RmgrId::HEAP, 0x10, &[0, 0, 0, 0, 1, 0, 0, flags], &[block(Fork::Main, 40_000)]);
        let window = window(vec![delete(0), delete(1)]);
        assert_eq!(steps(&window, Fork::Vm, 1), [Step::MapEdit { record: 1 }]);
        assert_eq!(steps(&window, Fork::Main, 40_000).len(), 2);
    }

    #[test]
    fn hints_and_records_that_do_nothing_are_no_steps() {
        let image = BlockImage {
            bytes: Bytes::from_static(&[0; BLCKSZ]),
            hole_offset: 0,
            hole_length: 0,
            info: 2,
            apply: true,
        };
        let with_image = BlockRef { image: Some(image), ..block(Fork::Main, 1) };
        let window = window(vec![
            record(RmgrId::XLOG, 0xA0, &[], &[block(Fork::Main, 0)]),
            record(RmgrId::XLOG, 0xA0, &[], &[with_image]),
            record(RmgrId::XLOG, 0xB0, &[], &[block(Fork::Fsm, 2)]),
        ]);
        assert_eq!(window.steps.len(), 1);
        assert_eq!(steps(&window, Fork::Main, 1), [Step::Reference { record: 1, block: 0 }]);
    }

    #[test]
    fn a_dropped_database_takes_its_blocks_with_it_and_a_copied_one_ends_the_window() {
        let drop_data: Vec<u8> =
            [NODE.db, 1, NODE.spc].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let mut window = window(vec![change(1), record(RmgrId::DBASE, 0x20, &drop_data, &[]), change(2)]);
        assert_eq!(steps(&window, Fork::Main, 1).last(), Some(&Step::Gone));
        assert_eq!(steps(&window, Fork::Main, 2).first(), Some(&Step::Gone));
        assert!(!window.is_full());
        let copy = record(RmgrId::DBASE, 0, &[0; 16], &[]);
        window.add(copy).expect("sound");
        assert!(window.is_full());
    }
}
