//! Image layers of a base that never overlap: those of large files as they arrive, and between them those of all
//! the rest, in key order.

use super::{BaseError, BaseOptions};
use object_store::ObjectStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinSet;
use zenith_layers::{
    FinishedLayer, Key, LayerError, LayerWriter, Row, Source, Value, WriterOptions, store_layer,
};
use zenith_manifest::{KeyBytes, LayerEntry};
use zenith_pgformat::Lsn;
use zenith_store::{Env, TimelinePaths};

/// Layers that are being stored while the next ones are written.
const UPLOADS_MAX: usize = 2;

/// See the module.
#[derive(Debug)]
pub(crate) struct OrderedLayers {
    options: WriterOptions,
    lsn: Lsn,
    layer_bytes: u64,
    objects: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    env: Env,
    /// The layer of the large file that is being brought.
    direct: Option<LayerWriter>,
    /// The layer of everything else, and its first key.
    ordered: Option<(LayerWriter, KeyBytes)>,
    /// First keys of finished layers of large files.
    direct_firsts: BTreeMap<KeyBytes, KeyBytes>,
    uploads: JoinSet<Result<LayerEntry, LayerError>>,
    stored: Vec<LayerEntry>,
}

impl OrderedLayers {
    pub(crate) fn new(
        options: &BaseOptions,
        objects: Arc<dyn ObjectStore>,
        paths: TimelinePaths,
        env: Env,
    ) -> OrderedLayers {
        OrderedLayers {
            options: WriterOptions::image(options.tli, options.redo, Some(options.id)),
            lsn: options.redo,
            layer_bytes: options.layer_bytes,
            objects,
            paths,
            env,
            direct: None,
            ordered: None,
            direct_firsts: BTreeMap::new(),
            uploads: JoinSet::new(),
            stored: Vec::new(),
        }
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored.iter().map(|layer| layer.bytes).sum()
    }

    pub(crate) fn begin_direct(&mut self) -> Result<(), BaseError> {
        self.direct = Some(LayerWriter::new(self.options)?);
        Ok(())
    }

    pub(crate) async fn push_direct(&mut self, key: Key, value: Value) -> Result<(), BaseError> {
        let row = self.row(key, value);
        let mut writer = match self.direct.take() {
            Some(writer) => writer,
            None => LayerWriter::new(self.options)?,
        };
        writer.push(&row)?;
        if writer.estimated_bytes() >= self.layer_bytes {
            self.end_writer(writer, true).await?;
        } else {
            self.direct = Some(writer);
        }
        Ok(())
    }

    pub(crate) async fn end_direct(&mut self) -> Result<(), BaseError> {
        match self.direct.take() {
            Some(writer) => self.end_writer(writer, true).await,
            None => Ok(()),
        }
    }

    /// A row of everything else; keys ascend.
    pub(crate) async fn push(&mut self, key: Key, value: Value) -> Result<(), BaseError> {
        let row = self.row(key, value);
        let bytes = key.to_bytes();
        if let Some((writer, first)) = self.ordered.take() {
            let jumps = self.direct_firsts.range(first..bytes).next().is_some();
            if jumps || writer.estimated_bytes() >= self.layer_bytes {
                self.end_writer(writer, false).await?;
            } else {
                self.ordered = Some((writer, first));
            }
        }
        let (writer, _) = match &mut self.ordered {
            Some(open) => open,
            closed => closed.insert((LayerWriter::new(self.options)?, bytes)),
        };
        writer.push(&row)?;
        Ok(())
    }

    /// All layers, by key.
    pub(crate) async fn finish(mut self) -> Result<Vec<LayerEntry>, BaseError> {
        if let Some((writer, _)) = self.ordered.take() {
            self.end_writer(writer, false).await?;
        }
        while !self.uploads.is_empty() {
            self.settle_one().await?;
        }
        self.stored.sort_unstable_by_key(|layer| layer.key_min);
        Ok(self.stored)
    }

    fn row(&self, key: Key, value: Value) -> Row {
        Row { key, lsn: self.lsn, value, source: Source::NONE }
    }

    async fn end_writer(&mut self, writer: LayerWriter, direct: bool) -> Result<(), BaseError> {
        if writer.rows() == 0 {
            return Ok(());
        }
        let layer: FinishedLayer = writer.finish()?;
        if direct {
            let entry = layer.entry(uuid::Uuid::nil());
            self.direct_firsts.insert(entry.key_min, entry.key_max);
        }
        while self.uploads.len() >= UPLOADS_MAX {
            self.settle_one().await?;
        }
        let (objects, paths, env) = (self.objects.clone(), self.paths.clone(), self.env.clone());
        self.uploads.spawn(async move { store_layer(&objects, &paths, &env, &layer).await });
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), BaseError> {
        match self.uploads.join_next().await {
            None => Ok(()),
            Some(Ok(stored)) => {
                self.stored.push(stored?);
                Ok(())
            }
            Some(Err(ended)) => {
                let what = format!("storing a layer ended early: {ended}");
                Err(BaseError::File { file: "layers".to_owned(), what })
            }
        }
    }
}
