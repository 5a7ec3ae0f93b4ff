//! Rows that wait for their layer.

use super::payloads::Payloads;
use super::sink::Sink;
use crate::error::IngestError;
use std::collections::BTreeMap;
use zenith_layers::{Event, EventWriter, Key, KeyClass, LayerWriter, Row, Value, WriterOptions};
use zenith_manifest::LayerEntry;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::Env;

/// Memory of a row beside its payload.
const ROW_BYTES: usize = 128;
/// A layer is ended when it is about this long.
const LAYER_BYTES: u64 = 128 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arena {
    rows: Vec<Row>,
    payloads: Payloads,
    events: Vec<Event>,
    /// Values of the small keys that loading looks for, so that it finds what is not in a layer yet.
    states: BTreeMap<(Key, Lsn), Value>,
    bytes: usize,
}

impl Arena {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.events.is_empty()
    }

    /// Memory that the rows take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn add(&mut self, rows: Vec<Row>, events: Vec<Event>) {
        for row in rows {
            self.bytes += ROW_BYTES + row.value.payload().len();
            let value = row.value.map_payload(|payload| self.payloads.keep(&payload));
            if matches!(row.key.class, KeyClass::RelSize | KeyClass::Database | KeyClass::RelMap) {
                self.bytes += ROW_BYTES;
                self.states.insert((row.key, row.lsn), value.clone());
            }
            self.rows.push(Row { value, ..row });
        }
        for event in events {
            self.bytes += ROW_BYTES + event.name.len();
            self.events.push(event);
        }
    }

    /// Lets go of everything and keeps the memory for as much again.
    pub(super) fn begin_anew(&mut self) {
        self.rows.clear();
        self.events.clear();
        self.states.clear();
        self.bytes = 0;
        self.payloads.reclaim();
    }

    /// The newest value of a small key at `upto` among the rows that wait.
    pub(super) fn latest(&self, key: Key, upto: Lsn) -> Option<(Lsn, &Value)> {
        let newest = self.states.range((key, Lsn::INVALID)..=(key, upto)).next_back();
        newest.map(|((_, lsn), value)| (*lsn, value))
    }

    /// Writes and stores the layers of everything in it; all rows lie above `from` and at most at `to`.
    pub(super) async fn write<S: Sink>(
        &mut self,
        sink: &S,
        env: &Env,
        tli: Tli,
        from: Lsn,
        to: Lsn,
    ) -> Result<Vec<LayerEntry>, IngestError> {
        let mut stored = Vec::new();
        self.rows.sort_unstable_by_key(|row| (row.key, row.lsn));
        let mut writer: Option<LayerWriter> = None;
        for row in &self.rows {
            let open = match &mut writer {
                Some(open) => open,
                closed => closed.insert(LayerWriter::new(WriterOptions::delta(tli, from, to))?),
            };
            open.push(row)?;
            if open.estimated_bytes() >= LAYER_BYTES
                && let Some(full) = writer.take()
            {
                stored.push(sink.store_layer(env, &full.finish()?).await?);
            }
        }
        if let Some(last) = writer {
            stored.push(sink.store_layer(env, &last.finish()?).await?);
        }
        if !self.events.is_empty() {
            let mut events = EventWriter::new(tli, from, to)?;
            for event in &self.events {
                events.push(event)?;
            }
            stored.push(sink.store_layer(env, &events.finish()?).await?);
        }
        Ok(stored)
    }
}
