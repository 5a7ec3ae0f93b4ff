//! What a WAL record changes, as keyed values. Pure: [`needs`] says which state must be at hand, [`interpret`] gives
//! the changes, [`Changes::apply`] brings the state to the record's end.
//!
//! One file for each family of resource managers; each follows the redo routine that it names. A record kind that
//! PostgreSQL 15 does not have, and any record of an extension's resource manager, stops with an error (I9): a stock
//! redo process could not redo it.

mod blocks;
mod clog;
mod commit_ts;
mod dbase;
mod draft;
mod heap;
mod multixact;
mod relmap;
mod replorigin;
mod smgr;
mod standby;
mod state;
mod tblspc;
mod xact;
mod xlog;

pub use draft::{Changes, Context};
pub use state::{Memory, State};

use crate::error::IngestError;
use draft::Draft;
use zenith_layers::{Key, KeyClass};
use zenith_pgformat::wal::dbase::DbaseRecord;
use zenith_pgformat::wal::smgr::SmgrRecord;
use zenith_pgformat::wal::xact::XactRecord;
use zenith_pgformat::wal::{Record, RmgrId, describe};
use zenith_pgformat::{Fork, RelNode};

/// Which state a record needs, beyond the small states that [`State`] holds whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Keys of relation sizes and relation maps.
    pub keys: Vec<Key>,
}

impl Needs {
    fn size(&mut self, node: RelNode, fork: Fork) {
        self.keys.push(Key::rel_size(node, fork));
    }

    /// The keys that the state does not know.
    pub fn missing<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Key> + 'a {
        self.keys.iter().copied().filter(|key| match (key.class, Fork::from_number(key.fork)) {
            (KeyClass::RelSize, Some(fork)) => !state.knows_rel_size(key.node(), fork),
            _ => !state.rel_maps.contains_key(&(key.spc, key.db)),
        })
    }

    /// Keeps what is needed among what was used lately.
    pub fn touch(&self, state: &mut State) {
        for key in &self.keys {
            if let (KeyClass::RelSize, Some(fork)) = (key.class, Fork::from_number(key.fork)) {
                state.sizes.touch(key.node(), fork);
            }
        }
    }
}

/// Which state must be loaded before the record is interpreted.
pub fn needs(record: &Record) -> Result<Needs, IngestError> {
    use zenith_pgformat::wal::{dbase, heap, smgr, xact};
    let mut needs = Needs::default();
    for block in &record.blocks {
        needs.size(block.node, block.fork);
    }
    match record.rmgr {
        RmgrId::HEAP | RmgrId::HEAP2 => {
            for clear in heap::parse(record)?.clears {
                needs.size(clear.node, Fork::Vm);
            }
        }
        RmgrId::SMGR => match smgr::parse(record)? {
            SmgrRecord::Create { node, fork } => needs.size(node, fork),
            SmgrRecord::Truncate { node, .. } => {
                [Fork::Main, Fork::Fsm, Fork::Vm].into_iter().for_each(|fork| needs.size(node, fork));
            }
        },
        RmgrId::XACT => {
            if let XactRecord::Commit(ended) | XactRecord::Abort(ended) = xact::parse(record)? {
                for node in ended.dropped {
                    Fork::ALL.into_iter().for_each(|fork| needs.size(node, fork));
                }
            }
        }
        RmgrId::DBASE => {
            if let DbaseRecord::CreateFileCopy { source, .. } = dbase::parse(record)? {
                needs.keys.push(Key::rel_map(source.spc, source.db));
            }
        }
        _ => {}
    }
    Ok(needs)
}

/// What the record changes. Nothing of the state is touched.
pub fn interpret(record: &Record, state: &State, context: Context) -> Result<Changes, IngestError> {
    describe::check_known(record)?;
    let mut draft = Draft::new(record, state, context);
    draft.see_xid(record.xid);
    if let Some(top) = record.top_xid {
        draft.see_xid(top);
    }
    match record.rmgr {
        RmgrId::XLOG => xlog::interpret(&mut draft)?,
        RmgrId::XACT => xact::interpret(&mut draft)?,
        RmgrId::SMGR => smgr::interpret(&mut draft)?,
        RmgrId::CLOG => clog::interpret(&mut draft)?,
        RmgrId::DBASE => dbase::interpret(&mut draft)?,
        RmgrId::TBLSPC => tblspc::interpret(&mut draft)?,
        RmgrId::MULTIXACT => multixact::interpret(&mut draft)?,
        RmgrId::RELMAP => relmap::interpret(&mut draft)?,
        RmgrId::STANDBY => standby::interpret(&mut draft)?,
        RmgrId::HEAP | RmgrId::HEAP2 => heap::interpret(&mut draft)?,
        RmgrId::COMMIT_TS => commit_ts::interpret(&mut draft)?,
        RmgrId::REPLORIGIN => replorigin::interpret(&mut draft)?,
        // For logical decoding; slots are never restored.
        RmgrId::LOGICALMSG => {}
        // Indexes, sequences and generic records are nothing but their blocks.
        RmgrId::BTREE
        | RmgrId::HASH
        | RmgrId::GIN
        | RmgrId::GIST
        | RmgrId::SEQ
        | RmgrId::SPGIST
        | RmgrId::BRIN
        | RmgrId::GENERIC => blocks::interpret(&mut draft)?,
        // `check_known` lets no other through.
        rmgr => return Err(draft.error(format!("resource manager {rmgr} is not known here"))),
    }
    draft.finish()
}

#[cfg(test)]
mod tests;
