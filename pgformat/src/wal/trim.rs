//! A record cut down to what redo of one of its blocks reads.

use super::Record;
use super::encode::{BlockParts, Parts, encode_parts};
use bytes::Bytes;

/// The record as redo of `record.blocks[index]` needs it, valid for `DecodeXLogRecord`, its checksum set right.
///
/// Every block reference and the main data stay: redo reads the other blocks' numbers. Another block's image and data
/// are left out when that block is not `WILL_INIT`; redo of some records rebuilds an initialised page whichever block
/// it is asked for, and reads that page's data (PROTOCOLS.md §3, "Trimming"). Images that are only checks
/// (`wal_consistency_checking`) are left out everywhere: redo never reads them.
///
/// Two record types cannot be redone from the trimmed form for a block without image: `XLOG_FPI` requires all its images
/// and GIN's split those of blocks 0 to 2. Both restore the blocks' own images instead, and the split's child is a
/// native edit. With an `index` past the end no block keeps its own.
pub fn for_block(record: &Record, index: usize) -> Bytes {
    let parts = record.blocks.iter().enumerate().map(|(at, block)| {
        let own = at == index || block.will_init;
        BlockParts {
            block,
            image: block.image.as_ref().filter(|image| own && image.apply),
            data: block.data.as_deref().filter(|_| own),
        }
    });
    let is_whole = |parts: BlockParts<'_>| {
        parts.image.is_some() == parts.block.image.is_some()
            && parts.data.is_some() == parts.block.data.is_some()
    };
    if parts.clone().all(is_whole) {
        return record.raw.clone();
    }
    let head = Parts {
        rmgr: record.rmgr,
        info: record.info,
        xid: record.xid,
        prev: record.prev,
        origin: record.origin,
        top_xid: record.top_xid,
        main_data: &record.main_data,
    };
    Bytes::from(encode_parts(&head, parts))
}

#[cfg(test)]
mod tests {
    use super::super::encode::encode_with_blocks;
    use super::super::record::BlockRef;
    use super::super::record::{BKPIMAGE_APPLY, BKPIMAGE_HAS_HOLE};
    use super::super::{BlockImage, RmgrId};
    use super::*;
    use crate::{Fork, Lsn, RelNode};

    fn image(apply: bool) -> Option<BlockImage> {
        let info = BKPIMAGE_HAS_HOLE | if apply { BKPIMAGE_APPLY } else { 0 };
        let bytes = Bytes::from(vec![9; 100]);
        Some(BlockImage { bytes, hole_offset: 50, hole_length: 8092, info, apply })
    }

    /// A record of four blocks: one with data, one with an image, one initialised, one checked only.
    fn record() -> Record {
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let other = RelNode { rel: 16385, ..node };
        let data = || Some(Bytes::from_static(b"data of the block"));
        let block = |id, node, fork| BlockRef {
            id,
            node,
            fork,
            block: 7 + u32::from(id),
            will_init: false,
            image: None,
            data: None,
        };
        let blocks = [
            BlockRef { data: data(), ..block(0, node, Fork::Main) },
            BlockRef { image: image(true), ..block(1, node, Fork::Vm) },
            BlockRef { will_init: true, data: data(), ..block(3, other, Fork::Main) },
            BlockRef { image: image(false), data: data(), ..block(4, other, Fork::Main) },
        ];
        let parts = Parts {
            rmgr: RmgrId::BTREE,
            info: 0x30,
            xid: 700,
            prev: Lsn(0x100),
            origin: Some(3),
            top_xid: Some(600),
            main_data: &[5; 300],
        };
        let raw = encode_with_blocks(&parts, blocks.iter());
        let record = Record::decode(Bytes::from(raw), Lsn(0x200), Lsn(0x400)).expect("sound");
        assert_eq!(record.blocks, blocks);
        record
    }

    fn trimmed(index: usize) -> Record {
        let raw = for_block(&record(), index);
        Record::decode(raw, Lsn(0x200), Lsn(0x400)).expect("a trimmed record decodes")
    }

    #[test]
    fn a_trimmed_record_keeps_its_own_block_every_header_and_the_main_data() {
        let whole = record();
        for index in 0..whole.blocks.len() {
            let cut = trimmed(index);
            let headers = |record: &Record| {
                let key = |b: &BlockRef| (b.id, b.node, b.fork, b.block, b.will_init);
                record.blocks.iter().map(key).collect::<Vec<_>>()
            };
            assert_eq!(headers(&cut), headers(&whole));
            assert_eq!(cut.blocks[index].data, whole.blocks[index].data);
            assert_eq!(
                (cut.xid, cut.prev, cut.info, cut.rmgr, cut.origin, cut.top_xid, &cut.main_data),
                (
                    whole.xid,
                    whole.prev,
                    whole.info,
                    whole.rmgr,
                    whole.origin,
                    whole.top_xid,
                    &whole.main_data
                )
            );
        }
    }

    #[test]
    fn only_initialised_blocks_keep_their_data_in_another_blocks_record() {
        let cut = trimmed(1);
        assert_eq!(cut.blocks[0].data, None);
        assert!(cut.blocks[1].image.as_ref().is_some_and(|image| image.apply));
        assert!(cut.blocks[2].data.is_some(), "redo may rebuild an initialised page on any block's behalf");
        assert_eq!(cut.blocks[3].data, None);
        assert_eq!(trimmed(0).blocks[1].image, None);
    }

    #[test]
    fn check_only_images_are_left_out_of_the_own_block_too() {
        assert_eq!(trimmed(3).blocks[3].image, None);
        assert!(trimmed(3).blocks[3].data.is_some());
    }

    #[test]
    fn a_record_with_nothing_to_leave_out_is_not_copied() {
        let record = Record { blocks: record().blocks[..1].to_vec(), ..record() };
        assert_eq!(for_block(&record, 0).as_ptr(), record.raw.as_ptr());
    }
}
