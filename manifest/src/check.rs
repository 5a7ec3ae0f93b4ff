//! What holds of every root. A stored root that breaks one of these rules is damaged; a transition that would
//! break one is refused.

use crate::root::{BaseImage, Root};
use std::collections::HashSet;

/// The most layers that a stored root names itself, outside of index pages.
pub const RECENT_MAX: usize = 128;

/// Checks every rule that can be seen from the root alone; the error says which one is broken.
pub fn check(root: &Root) -> Result<(), String> {
    bases(root)?;
    ranges(root)?;
    history(root)?;
    let mut named = HashSet::new();
    if let Some(twice) = root.recent.iter().find(|layer| !named.insert(layer.id)) {
        return Err(format!("layer {} is named twice", twice.id.simple()));
    }
    let mut pages = HashSet::new();
    if let Some(twice) = root.pages.iter().find(|page| !pages.insert(page.id)) {
        return Err(format!("index page {} is named twice", twice.id.simple()));
    }
    Ok(())
}

/// [`check`], and what holds of a root only once its layers are spilled to index pages.
pub(crate) fn check_stored(root: &Root) -> Result<(), String> {
    check(root)?;
    if root.version == 0 {
        return Err("version 0 is never stored".to_owned());
    }
    if root.recent.len() > RECENT_MAX {
        return Err(format!("it names {} layers itself, more than {RECENT_MAX}", root.recent.len()));
    }
    Ok(())
}

/// Whether one base image makes sense by itself.
pub(crate) fn base_is_sound(base: &BaseImage) -> Result<(), String> {
    if !base.redo.is_valid() || base.tli == 0 {
        return Err("it has no redo LSN or no TLI".to_owned());
    }
    if base.checkpoint < base.redo || base.end <= base.checkpoint {
        return Err(format!(
            "redo {}, checkpoint {} and end {} are not in this order",
            base.redo, base.checkpoint, base.end
        ));
    }
    Ok(())
}

fn bases(root: &Root) -> Result<(), String> {
    let mut ids = HashSet::new();
    for base in &root.bases {
        base_is_sound(base).map_err(|reason| format!("base image {}: {reason}", base.id.0.simple()))?;
        if !ids.insert(base.id) {
            return Err(format!("base image {} is named twice", base.id.0.simple()));
        }
    }
    if root.bases.is_sorted_by_key(|base| base.redo) {
        Ok(())
    } else {
        Err("base images are not sorted".into())
    }
}

fn ranges(root: &Root) -> Result<(), String> {
    if root.ranges.is_empty() != root.sliced.is_none() {
        return Err("it has ranges without a sliced position, or the other way round".to_owned());
    }
    for (at, range) in root.ranges.iter().enumerate() {
        let known = range.base.is_none_or(|id| root.base(id).is_some_and(|base| base.end == range.from));
        if !known {
            return Err(format!("the range from {} begins with no base image that it names", range.from));
        }
        if range.base.is_none() && (at > 0 || root.ancestor.is_none_or(|ancestor| ancestor.lsn != range.from))
        {
            return Err(format!("the range from {} has neither base image nor ancestor", range.from));
        }
        match (range.to, root.ranges.get(at + 1)) {
            (None, None) => {}
            (Some(to), Some(next)) if range.from <= to && to < root.run_start(next) => {}
            _ => return Err(format!("the range from {} does not end before the next begins", range.from)),
        }
    }
    let newest = root.ranges.last().zip(root.sliced.as_ref());
    match newest {
        Some((range, sliced)) if sliced.lsn < root.run_start(range) => {
            Err(format!("WAL is sliced up to {}, before the newest range begins", sliced.lsn))
        }
        _ => Ok(()),
    }
}

fn history(root: &Root) -> Result<(), String> {
    let ascending =
        root.history.windows(2).all(|pair| matches!(pair, [a, b] if a.tli < b.tli && a.from <= b.from));
    if !ascending {
        return Err("its history of TLIs does not ascend".to_owned());
    }
    let newest = root.history.last().map(|switch| switch.tli);
    if newest == root.sliced.as_ref().map(|sliced| sliced.tli) {
        Ok(())
    } else {
        Err("its sliced position is on another TLI than its history".to_owned())
    }
}
