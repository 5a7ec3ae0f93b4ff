//! One record at a time, built by hand after the structures of PostgreSQL's headers.

use super::*;
use crate::model::{Alias, Database, NextXid, Parameters, RelEvent, RelSize, ReplOrigin, SlruSize};
use bytes::Bytes;
use zenith_layers::{EventKind, Row, Slru, Value};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal::{BlockImage, BlockRef, WalError};
use zenith_pgformat::{Lsn, Page, page};
use zenith_redo::native::{ALL_FROZEN, Edit, Member, VISIBILITY_BITS, XactStatus};

const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };
const END: Lsn = Lsn(0x2000);
const CLOSED: Context = Context { window_open: false };
const OPEN: Context = Context { window_open: true };

fn state() -> State {
    let checkpoint = CheckPoint {
        next_xid: 1000,
        next_oid: 20_000,
        next_multi: 10,
        next_multi_offset: 30,
        oldest_xid: 700,
        oldest_multi: 1,
        ..CheckPoint::default()
    };
    let parameters = Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        wal_level: 1,
        wal_log_hints: false,
        track_commit_timestamp: false,
    };
    let mut state = State::new(checkpoint, NextXid(1000), parameters);
    state.databases.insert((1663, 5), Database { created: Lsn(0), alias: None });
    for slru in Slru::ALL {
        state.slru.insert((slru, 0), 1);
    }
    state
}

fn with_size(state: &mut State, fork: Fork, blocks: u32) {
    state.load_rel_size(NODE, fork, Some(RelSize { blocks, ..RelSize::new(Lsn(0)) }));
}

fn without(state: &mut State, forks: &[Fork]) {
    forks.iter().for_each(|fork| state.load_rel_size(NODE, *fork, None));
}

fn record(rmgr: RmgrId, info: u8, main: &[u8], blocks: Vec<BlockRef>) -> Record {
    Record {
        lsn: Lsn(0x1F00),
        end: END,
        prev: Lsn(0x1E00),
        xid: 0,
        rmgr,
        info,
        origin: None,
        top_xid: None,
        blocks,
        main_data: Bytes::copy_from_slice(main),
        raw: Bytes::from(vec![0; 100]),
    }
}

fn block(id: u8, fork: Fork, block: u32) -> BlockRef {
    BlockRef {
        id,
        node: NODE,
        fork,
        block,
        will_init: false,
        image: None,
        data: Some(Bytes::from_static(b"data")),
    }
}

fn init(id: u8, number: u32) -> BlockRef {
    BlockRef { will_init: true, ..block(id, Fork::Main, number) }
}

fn image(id: u8, fork: Fork, number: u32, content: &Page, apply: bool) -> BlockRef {
    let image = BlockImage {
        bytes: Bytes::copy_from_slice(content),
        hole_offset: 0,
        hole_length: 0,
        info: if apply { 0x02 } else { 0 },
        apply,
    };
    BlockRef { image: Some(image), data: None, ..block(id, fork, number) }
}

fn heap_page() -> Page {
    let mut page = [7; 8192];
    page[..24].fill(0);
    page[14] = 1;
    page
}

/// Little-endian 32-bit numbers, one after the other.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn changes(record: &Record, state: &State, context: Context) -> Changes {
    interpret(record, state, context).unwrap_or_else(|e| panic!("{record:?}: {e}"))
}

/// The changes, applied to the state.
fn step(record: &Record, state: &mut State) -> Vec<Row> {
    let changes = changes(record, state, CLOSED);
    let rows = changes.rows.clone();
    changes.apply(state);
    rows
}

fn keys(rows: &[Row]) -> Vec<Key> {
    rows.iter().map(|row| row.key).collect()
}

fn value(rows: &[Row], key: Key) -> Option<&Value> {
    rows.iter().find(|row| row.key == key).map(|row| &row.value)
}

fn edit(rows: &[Row], key: Key) -> Option<Edit> {
    match value(rows, key)? {
        Value::Edit(bytes) => Some(Edit::decode(bytes).unwrap()),
        _ => None,
    }
}

fn size(rows: &[Row], fork: Fork) -> Option<RelSize> {
    match value(rows, Key::rel_size(NODE, fork))? {
        Value::State(bytes) => Some(RelSize::decode(bytes).unwrap()),
        _ => None,
    }
}

fn rel_event(rows: &[Row], fork: Fork) -> Option<RelEvent> {
    match value(rows, Key::rel_event(NODE, fork))? {
        Value::State(bytes) => Some(RelEvent::decode(bytes).unwrap()),
        _ => None,
    }
}

mod counters;
mod relations;
mod transactions;
