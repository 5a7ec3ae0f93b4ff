//! WAL that is archived and not sliced yet: sliced into a private local folder, without rights to write to the store.

use std::sync::Arc;
use zenith_layers::LayerStore;
use zenith_manifest::LayerEntry;

/// Layers of the tail.
pub(crate) struct TailLayers {
    pub(crate) store: Arc<LayerStore>,
    pub(crate) entries: Vec<Arc<LayerEntry>>,
    /// Goes with the last handle.
    pub(crate) _folder: tempfile::TempDir,
}
