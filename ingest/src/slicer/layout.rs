//! Where slicing begins, as the manifest says it, and what it keeps there.

use crate::error::IngestError;
use crate::interpret::Memory;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zenith_layers::{Key, ReadMode};
use zenith_manifest::{BaseId, BaseImage, KeyBytes, LayerEntry, Root, SlicedPosition, TliSwitch};
use zenith_pgformat::Lsn;

/// Where slicing begins.
#[derive(Clone, Debug)]
pub struct SlicerStart {
    /// The end of what is sliced.
    pub position: SlicedPosition,
    /// PostgreSQL's timelines along which it was.
    pub history: Vec<TliSwitch>,
    /// The base image that began the newest range, while its end was not met.
    pub open_base: Option<BaseImage>,
    /// Base images whose end was not met.
    pub unconfirmed: Vec<BaseImage>,
    /// From which base image the state is read.
    pub mode: ReadMode,
}

impl SlicerStart {
    /// Of a manifest version.
    pub fn from_root(root: &Root) -> Result<SlicerStart, IngestError> {
        let position = root.sliced.clone().ok_or(IngestError::NoBase)?;
        let open_base = root.ranges.last().and_then(|range| root.base(range.base?));
        let open_base = open_base.filter(|base| !base.confirmed).cloned();
        let unconfirmed = root.bases.iter().filter(|base| !base.confirmed).cloned().collect();
        let mode = used_base(root).map_or(ReadMode::Serve, ReadMode::From);
        Ok(SlicerStart { position, history: root.history.clone(), open_base, unconfirmed, mode })
    }
}

/// The base image that the slicer's state is read from: the newest one whole at the sliced LSN, else the one
/// that began the range. `None` for a branch that has none of its own: its parent's serve.
fn used_base(root: &Root) -> Option<BaseId> {
    let sliced = root.sliced.as_ref()?.lsn;
    let range = root.ranges.last()?;
    let start = root.run_start(range);
    let whole =
        root.bases.iter().rev().find(|base| base.confirmed && base.redo >= start && base.end <= sliced);
    whole.map(|base| base.id).or(range.base)
}

/// The layers that a slicer may read: without the images of other bases than the one its state comes from, so that
/// what it knows of relations never mixes two views.
pub fn slicer_layers(root: &Root, layers: Vec<LayerEntry>) -> Vec<LayerEntry> {
    let used = used_base(root);
    layers.into_iter().filter(|layer| layer.base.is_none() || layer.base == used).collect()
}

/// `SlicedPosition::state`, version 1.
#[derive(Serialize, Deserialize, Default)]
struct StoredMemory {
    version: u32,
    /// Key in hexadecimal, LSN of the first record that changed the page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    invalid_pages: Vec<(String, Lsn)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre_initialized_offsets_page: Option<u32>,
}

/// `Null` for a memory without anything in it.
pub(super) fn memory_to_json(memory: &Memory) -> serde_json::Value {
    if *memory == Memory::default() {
        return serde_json::Value::Null;
    }
    let hex = |key: &Key| key.to_bytes().0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let stored = StoredMemory {
        version: 1,
        invalid_pages: memory.invalid_pages.iter().map(|(key, lsn)| (hex(key), *lsn)).collect(),
        pre_initialized_offsets_page: memory.pre_initialized_offsets_page,
    };
    serde_json::to_value(stored).unwrap_or(serde_json::Value::Null)
}

pub(super) fn memory_from_json(state: &serde_json::Value) -> Result<Memory, IngestError> {
    if state.is_null() {
        return Ok(Memory::default());
    }
    let wrong = |what: String| {
        IngestError::Internal(format!(
            "the slicer's state in the manifest cannot be read ({what}): use a newer release"
        ))
    };
    let stored = StoredMemory::deserialize(state).map_err(|e| wrong(e.to_string()))?;
    if stored.version != 1 {
        return Err(wrong(format!("version {}", stored.version)));
    }
    let mut invalid_pages = BTreeMap::new();
    for (hex, lsn) in stored.invalid_pages {
        let key = key_of_hex(&hex).ok_or_else(|| wrong(format!("key {hex}")))?;
        invalid_pages.insert(key, lsn);
    }
    Ok(Memory { invalid_pages, pre_initialized_offsets_page: stored.pre_initialized_offsets_page })
}

fn key_of_hex(hex: &str) -> Option<Key> {
    let mut bytes = [0; 18];
    if hex.len() != 36 || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Key::from_bytes(&KeyBytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_pgformat::{Fork, RelNode};

    #[test]
    fn what_is_remembered_reads_back() {
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let memory = Memory {
            invalid_pages: BTreeMap::from([(Key::rel_block(node, Fork::Main, 77), Lsn(0x1234_5678))]),
            pre_initialized_offsets_page: Some(9),
        };
        assert_eq!(memory_from_json(&memory_to_json(&memory)).unwrap(), memory);
        assert_eq!(memory_from_json(&serde_json::Value::Null).unwrap(), Memory::default());
    }

    #[test]
    fn a_state_of_another_version_is_refused() {
        for text in [r#"{"version":2}"#, "7", r#"{"version":1,"invalid_pages":[["zz","0/1"]]}"#] {
            assert!(memory_from_json(&serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
    }
}
