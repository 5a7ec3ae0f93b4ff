//! How one root becomes the next: pure functions, so that a commit which met a conflict can be tried again on the
//! newer root, and so that every rule can be tested without a store.
//!
//! The rules are PROTOCOLS.md §2 and §3. Who keeps an epoch is fenced by it (I6); base images are registered
//! without one and carry every role's epoch through unchanged.

use crate::check::{base_is_sound, check};
use crate::entry::{BaseId, LayerEntry, LayerKind};
use crate::root::{BaseImage, ReadableRange, Role, Root, SlicedPosition, TliSwitch};
use std::collections::HashSet;
use uuid::Uuid;
use zenith_pgformat::{Lsn, Tli};

/// A change of what exists.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Change {
    /// Manifest 1 of a timeline that has an ancestor: slicing begins at the branch point.
    CreateTimeline {
        /// At the branch point; its TLI is the child's own.
        start: SlicedPosition,
    },
    /// A finished base image with all its layers.
    RegisterBase {
        /// The base image; not confirmed.
        base: BaseImage,
        /// Its image layers, in key order.
        layers: Vec<LayerEntry>,
    },
    /// A role starts and fences whoever held it: its epoch goes up by one.
    TakeEpoch(Role),
    /// WAL was sliced.
    Slice(Slice),
    /// The ends of base images were met in WAL that had been sliced before they were registered.
    ConfirmBases {
        /// The slicer's.
        epoch: u64,
        /// Which.
        bases: Vec<BaseId>,
    },
    /// WAL is missing after the sliced position: the newest range ends there, and slicing goes on at a base image
    /// past the gap.
    BeginRange {
        /// The slicer's.
        epoch: u64,
        /// Where slicing stands: what the slicer saw when it decided that there is a gap.
        at: Lsn,
        /// The base image that begins the next range.
        base: BaseId,
    },
}

/// See [`Change::Slice`].
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    /// The slicer's.
    pub epoch: u64,
    /// Where slicing stood: exactly the root's sliced LSN.
    pub from: Lsn,
    /// Where it stands now: the end of the last sliced record.
    pub to: Lsn,
    /// The start of the last sliced record.
    pub prev: Lsn,
    /// Delta and event layers whose rows lie above `from` and at most at `to`.
    pub layers: Vec<LayerEntry>,
    /// Base images whose end was met.
    pub confirmed: Vec<BaseId>,
    /// Switches to newer TLIs that were followed, in order.
    pub switches: Vec<TliSwitch>,
    /// What the slicer has to remember.
    pub state: serde_json::Value,
}

/// A change that the rules do not allow. Trying again does not help.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Another process took the role over (I6).
    #[error("another {role:?} has taken over: this one holds epoch {held}, the manifest says {current}")]
    Fenced {
        /// Which role.
        role: Role,
        /// The epoch of the change.
        held: u64,
        /// The epoch in the manifest.
        current: u64,
    },
    /// The timeline has a manifest already.
    #[error("the timeline has a manifest already (version {0})")]
    AlreadyCreated(u64),
    /// A branch without manifest 1, or a timeline without ancestor that is told to begin like a branch.
    #[error("the timeline does not begin like this: {0}")]
    WrongBeginning(&'static str),
    /// The timeline has no base image to slice from.
    #[error("the timeline holds no base image yet; take one with zenith_push base")]
    NoBase,
    /// WAL between two slices would be left out.
    #[error("WAL is sliced up to {sliced}, so slicing cannot go on at {from}")]
    NotContiguous {
        /// The root's position.
        sliced: Lsn,
        /// The change's.
        from: Lsn,
    },
    /// A base image of that id was registered before.
    #[error("base image {0:?} is registered already")]
    BaseRegistered(BaseId),
    /// A base image that makes no sense by itself.
    #[error("base image {base:?}: {reason}")]
    MalformedBase {
        /// Which one.
        base: BaseId,
        /// What is wrong.
        reason: String,
    },
    /// A base image that does not belong to the sliced history.
    #[error(
        "base image {base:?} of TLI {tli} at {redo} cannot be added: {reason}; push it to a timeline of its own \
             (zenith_push base --timeline NEW --create)"
    )]
    OffHistory {
        /// Which one.
        base: BaseId,
        /// Its TLI.
        tli: Tli,
        /// Its redo LSN.
        redo: Lsn,
        /// Why not.
        reason: String,
    },
    /// A base image whose end cannot be confirmed.
    #[error("base image {base:?} cannot be confirmed: {reason}")]
    NotConfirmable {
        /// Which one.
        base: BaseId,
        /// Why not.
        reason: String,
    },
    /// A base image that cannot begin a range.
    #[error("base image {base:?} cannot begin a range: {reason}")]
    NoRange {
        /// Which one.
        base: BaseId,
        /// Why not.
        reason: String,
    },
    /// A layer that does not fit the change that names it.
    #[error("layer {layer}: {reason}")]
    MalformedLayer {
        /// Which one.
        layer: Uuid,
        /// What is wrong.
        reason: String,
    },
    /// A switch of TLIs that does not fit the sliced history.
    #[error("TLI {tli} cannot begin at {from}: {reason}")]
    WrongSwitch {
        /// The TLI.
        tli: Tli,
        /// The switch point.
        from: Lsn,
        /// Why not.
        reason: &'static str,
    },
    /// The resulting root would break a rule that holds of every root.
    #[error("the manifest would not be sound: {0}")]
    Unsound(String),
}

/// The root after `changes`, all of them or none: the next version, with this commit id.
pub fn apply(root: &Root, changes: &[Change], commit_id: Uuid) -> Result<Root, Refusal> {
    let mut next = root.clone();
    for change in changes {
        apply_one(&mut next, change)?;
    }
    next.version = root.version.saturating_add(1);
    next.commit_id = commit_id;
    check(&next).map_err(Refusal::Unsound)?;
    Ok(next)
}

fn apply_one(root: &mut Root, change: &Change) -> Result<(), Refusal> {
    match change {
        Change::CreateTimeline { start } => create_timeline(root, start),
        Change::RegisterBase { base, layers } => register_base(root, base, layers),
        Change::TakeEpoch(role) => {
            must_be_begun(root)?;
            let epoch = root.epochs.of_mut(*role);
            *epoch = epoch.saturating_add(1);
            Ok(())
        }
        Change::Slice(slice) => apply_slice(root, slice),
        Change::ConfirmBases { epoch, bases } => {
            must_hold(root, Role::Slicer, *epoch)?;
            bases.iter().try_for_each(|&base| confirm(root, base))
        }
        Change::BeginRange { epoch, at, base } => begin_range(root, *epoch, *at, *base),
    }
}

/// A branch's first manifest is the one that says where it begins.
fn must_be_begun(root: &Root) -> Result<(), Refusal> {
    if root.ancestor.is_some() && root.sliced.is_none() {
        return Err(Refusal::WrongBeginning(
            "it is a branch whose first manifest is missing; create it again",
        ));
    }
    Ok(())
}

fn must_hold(root: &Root, role: Role, held: u64) -> Result<(), Refusal> {
    let current = root.epochs.of(role);
    if held != 0 && held == current { Ok(()) } else { Err(Refusal::Fenced { role, held, current }) }
}

fn create_timeline(root: &mut Root, start: &SlicedPosition) -> Result<(), Refusal> {
    if root.version > 0 || root.sliced.is_some() {
        return Err(Refusal::AlreadyCreated(root.version));
    }
    let Some(ancestor) = root.ancestor else {
        return Err(Refusal::WrongBeginning("it has no ancestor, so a base image must begin it"));
    };
    if start.lsn != ancestor.lsn || start.tli < ancestor.tli {
        return Err(Refusal::WrongBeginning(
            "a branch begins at its branch point, on no older TLI than its parent",
        ));
    }
    root.ranges = vec![ReadableRange { from: ancestor.lsn, to: None, base: None }];
    root.history = vec![TliSwitch { tli: start.tli, from: start.lsn }];
    root.sliced = Some(start.clone());
    Ok(())
}

fn register_base(root: &mut Root, base: &BaseImage, layers: &[LayerEntry]) -> Result<(), Refusal> {
    must_be_begun(root)?;
    let malformed = |reason: String| Refusal::MalformedBase { base: base.id, reason };
    base_is_sound(base).map_err(malformed)?;
    if base.confirmed {
        return Err(malformed("it is confirmed before it is registered".to_owned()));
    }
    if root.base(base.id).is_some() {
        return Err(Refusal::BaseRegistered(base.id));
    }
    base_layers_fit(base, layers)?;
    match &root.sliced {
        None => begin_at(root, base),
        Some(sliced) => belongs_to_history(root, sliced, base)?,
    }
    let at = root.bases.partition_point(|other| other.redo <= base.redo);
    root.bases.insert(at, base.clone());
    name_layers(root, layers)
}

fn begin_at(root: &mut Root, base: &BaseImage) {
    root.ranges.push(ReadableRange { from: base.end, to: None, base: Some(base.id) });
    if root.history.last().is_none_or(|last| last.tli < base.tli) {
        root.history.push(TliSwitch { tli: base.tli, from: base.redo });
    }
    root.sliced = Some(SlicedPosition {
        tli: base.tli,
        lsn: base.redo,
        prev: Lsn::INVALID,
        state: serde_json::Value::Null,
    });
}

/// A second base image. Ahead of slicing it waits: slicing reaches it, or finds a gap and begins a range with it.
/// Behind, the WAL that makes it whole must have been sliced.
fn belongs_to_history(root: &Root, sliced: &SlicedPosition, base: &BaseImage) -> Result<(), Refusal> {
    let off = |reason: String| Refusal::OffHistory { base: base.id, tli: base.tli, redo: base.redo, reason };
    if base.redo >= sliced.lsn {
        return if base.tli >= sliced.tli {
            Ok(())
        } else {
            Err(off(format!("slicing has followed TLI {} up to {}", sliced.tli, sliced.lsn)))
        };
    }
    let tli = root.tli_starting_at(base.redo);
    if tli != Some(base.tli) {
        let there = tli.map_or("no TLI".to_owned(), |tli| format!("TLI {tli}"));
        return Err(off(format!("the sliced history has {there} there")));
    }
    let run = root
        .ranges
        .iter()
        .find(|range| root.run_start(range) <= base.redo && range.to.is_none_or(|to| base.end <= to));
    if run.is_some() {
        return Ok(());
    }
    Err(off(format!("WAL from {} to {} was not sliced and cannot be any more", base.redo, base.end)))
}

fn base_layers_fit(base: &BaseImage, layers: &[LayerEntry]) -> Result<(), Refusal> {
    for layer in layers {
        let fits = layer.kind == LayerKind::Image
            && layer.base == Some(base.id)
            && layer.tli == base.tli
            && layer.lsn_from == base.redo
            && layer.lsn_to == base.redo
            && layer.serves_from == base.end
            && layer.key_min <= layer.key_max;
        if !fits {
            let reason = "it is no image layer of the base image that names it".to_owned();
            return Err(Refusal::MalformedLayer { layer: layer.id, reason });
        }
    }
    match layers.windows(2).find(|pair| matches!(pair, [a, b] if a.key_max >= b.key_min)) {
        Some([_, late]) => Err(Refusal::MalformedLayer {
            layer: late.id,
            reason: "its keys begin before the previous layer of the base image ends".to_owned(),
        }),
        _ => Ok(()),
    }
}

fn name_layers(root: &mut Root, layers: &[LayerEntry]) -> Result<(), Refusal> {
    let mut named: HashSet<Uuid> = root.recent.iter().map(|layer| layer.id).collect();
    if let Some(twice) = layers.iter().find(|layer| !named.insert(layer.id)) {
        return Err(Refusal::MalformedLayer { layer: twice.id, reason: "it is named already".to_owned() });
    }
    root.recent.extend_from_slice(layers);
    Ok(())
}

fn apply_slice(root: &mut Root, slice: &Slice) -> Result<(), Refusal> {
    must_hold(root, Role::Slicer, slice.epoch)?;
    let Some(sliced) = root.sliced.clone() else { return Err(Refusal::NoBase) };
    if slice.from != sliced.lsn || slice.to < slice.from {
        return Err(Refusal::NotContiguous { sliced: sliced.lsn, from: slice.from });
    }
    for switch in &slice.switches {
        follow(root, slice, switch)?;
    }
    let tli = root.history.last().map_or(sliced.tli, |last| last.tli);
    root.sliced = Some(SlicedPosition { tli, lsn: slice.to, prev: slice.prev, state: slice.state.clone() });
    for layer in &slice.layers {
        slice_layer_fits(root, slice, layer)?;
    }
    name_layers(root, &slice.layers)?;
    slice.confirmed.iter().try_for_each(|&base| confirm(root, base))
}

fn follow(root: &mut Root, slice: &Slice, switch: &TliSwitch) -> Result<(), Refusal> {
    let wrong = |reason| Err(Refusal::WrongSwitch { tli: switch.tli, from: switch.from, reason });
    if switch.from < slice.from || switch.from > slice.to {
        return wrong("the switch point is not in the WAL that was sliced");
    }
    if root.history.last().is_some_and(|last| last.tli >= switch.tli || last.from > switch.from) {
        return wrong("it does not follow the history that was sliced");
    }
    root.history.push(*switch);
    Ok(())
}

fn slice_layer_fits(root: &Root, slice: &Slice, layer: &LayerEntry) -> Result<(), Refusal> {
    let malformed =
        |reason: &str| Err(Refusal::MalformedLayer { layer: layer.id, reason: reason.to_owned() });
    if layer.kind == LayerKind::Image || layer.base.is_some() {
        return malformed("slicing makes delta and event layers only");
    }
    if layer.lsn_from < slice.from || layer.lsn_to > slice.to || layer.lsn_from >= layer.lsn_to {
        return malformed("its LSNs are not those of the slice");
    }
    if layer.serves_from != layer.lsn_from || layer.key_min > layer.key_max {
        return malformed("its bounds contradict one another");
    }
    if !root.history.iter().any(|switch| switch.tli == layer.tli) {
        return malformed("its TLI is not on the sliced history");
    }
    Ok(())
}

fn confirm(root: &mut Root, id: BaseId) -> Result<(), Refusal> {
    let refused = |reason: &str| Err(Refusal::NotConfirmable { base: id, reason: reason.to_owned() });
    let (Some(base), Some(sliced)) = (root.base(id), root.sliced.as_ref()) else {
        return refused("it is not registered");
    };
    if base.end > sliced.lsn {
        return refused("WAL is not sliced up to its end");
    }
    let on_history =
        root.tli_starting_at(base.redo) == Some(base.tli) && root.tli_ending_at(base.end) == Some(base.tli);
    if !on_history {
        return refused("its TLI is not on the sliced history");
    }
    let in_one_run =
        root.ranges.iter().any(|range| root.run_start(range) <= base.redo && base.end <= root.run_end(range));
    if !in_one_run {
        return refused("WAL is missing between its redo LSN and its end");
    }
    if let Some(base) = root.bases.iter_mut().find(|base| base.id == id) {
        base.confirmed = true;
    }
    Ok(())
}

fn begin_range(root: &mut Root, epoch: u64, at: Lsn, id: BaseId) -> Result<(), Refusal> {
    must_hold(root, Role::Slicer, epoch)?;
    let Some(sliced) = root.sliced.clone() else { return Err(Refusal::NoBase) };
    if at != sliced.lsn {
        return Err(Refusal::NotContiguous { sliced: sliced.lsn, from: at });
    }
    let refused = |reason: &str| Err(Refusal::NoRange { base: id, reason: reason.to_owned() });
    let Some(base) = root.base(id).cloned() else { return refused("it is not registered") };
    if base.redo <= sliced.lsn {
        return refused("it does not lie past the sliced WAL, so there is no gap before it");
    }
    if base.tli < sliced.tli {
        return refused("its TLI is older than the one that was sliced");
    }
    if let Some(last) = root.ranges.last_mut() {
        if last.from <= sliced.lsn {
            last.to = Some(sliced.lsn);
        } else {
            // The gap lies inside the base image's own window: nothing of this range can ever be read.
            root.ranges.pop();
        }
    }
    begin_at(root, &base);
    Ok(())
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
