//! `zenith layers`: exactly the objects that a manifest version names.

use crate::cli::{Session, Settings, output, units};
use anyhow::bail;
use clap::Args;
use serde::Serialize;
use zenith_layers::Key;
use zenith_manifest::{KeyBytes, LayerEntry, LayerKind, Root};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::{Env, TimelinePaths};

/// Options of `zenith layers`.
#[derive(Args, Debug, Clone, Default)]
pub struct LayersArgs {
    /// The manifest version [default: the newest]
    #[arg(long, value_name = "VERSION")]
    pub version: Option<u64>,
}

/// The objects of one manifest version.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    /// The timeline.
    pub timeline: String,
    /// The version.
    pub version: u64,
    /// Layer objects, by LSN.
    pub layers: Vec<Layer>,
    /// Index pages, which hold the entries of older layers.
    pub index_pages: Vec<IndexPage>,
    /// Base images, whose layers are among the layers.
    pub base_images: Vec<String>,
}

/// One layer object.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Its path in the store.
    pub object: String,
    /// What it holds.
    pub kind: LayerKind,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// Its rows lie above this LSN; those of an image at it.
    pub lsn_from: Lsn,
    /// Its rows lie at or below this LSN.
    pub lsn_to: Lsn,
    /// It serves reads from this LSN on.
    pub serves_from: Lsn,
    /// Lowest key.
    pub key_min: String,
    /// Highest key.
    pub key_max: String,
    /// Rows.
    pub rows: u64,
    /// Size.
    pub bytes: u64,
    /// The base image that it belongs to.
    pub base: Option<String>,
}

/// One index page.
#[derive(Clone, Debug, Serialize)]
pub struct IndexPage {
    /// Its path in the store.
    pub object: String,
    /// Entries in it.
    pub entries: u64,
    /// Size.
    pub bytes: u64,
}

/// Reads a manifest version and prints what it names.
pub async fn run(env: &Env, settings: &Settings, args: &LayersArgs) -> anyhow::Result<()> {
    let listing = list(env, settings, args.version).await?;
    if settings.json {
        return output::json(&listing);
    }
    output::line(listing.describe().trim_end())
}

/// The objects that a manifest version names; of the newest one without a version.
pub async fn list(env: &Env, settings: &Settings, version: Option<u64>) -> anyhow::Result<Listing> {
    let session = Session::open(env, settings, false)?;
    let identity = session.identity(&settings.timeline).await?;
    let manifest = session.manifest(&identity);
    let root = match version {
        Some(0) => bail!("manifest versions begin with 1"),
        Some(version) => manifest.version(version).await?,
        None => manifest.latest().await?,
    };
    let mut entries = manifest.layers(&root).await?;
    entries.sort_by_key(|entry| (entry.lsn_from, entry.key_min, entry.id));
    Ok(Listing::new(&session.paths(identity.timeline), &root, &entries))
}

impl Listing {
    fn new(paths: &TimelinePaths, root: &Root, entries: &[LayerEntry]) -> Listing {
        let page = |page: &zenith_manifest::IndexPageRef| IndexPage {
            object: paths.index_page(page.id).to_string(),
            entries: page.entries,
            bytes: page.bytes,
        };
        Listing {
            timeline: paths.id().to_string(),
            version: root.version,
            layers: entries.iter().map(|entry| Layer::new(paths, entry)).collect(),
            index_pages: root.pages.iter().map(page).collect(),
            base_images: root.bases.iter().map(|base| base.id.0.simple().to_string()).collect(),
        }
    }

    fn describe(&self) -> String {
        let heading =
            ["kind", "TLI", "LSN from", "LSN to", "rows", "size", "first key", "last key", "object"];
        let mut rows: Vec<Vec<String>> = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.layers.iter().map(|layer| {
            vec![
                format!("{:?}", layer.kind).to_lowercase(),
                layer.tli.to_string(),
                layer.lsn_from.to_string(),
                layer.lsn_to.to_string(),
                layer.rows.to_string(),
                units::size(layer.bytes),
                layer.key_min.clone(),
                layer.key_max.clone(),
                layer.object.clone(),
            ]
        }));
        let mut text = format!("timeline {}, manifest version {}\n", self.timeline, self.version);
        text.push_str(&output::table(&rows));
        let bytes = self.layers.iter().map(|layer| layer.bytes).sum();
        text.push_str(&format!("{} layers, {}\n", self.layers.len(), units::size(bytes)));
        for page in &self.index_pages {
            text.push_str(&format!("index page {}: {} entries\n", page.object, page.entries));
        }
        text
    }
}

impl Layer {
    fn new(paths: &TimelinePaths, entry: &LayerEntry) -> Layer {
        Layer {
            object: paths.layer(entry.id).to_string(),
            kind: entry.kind,
            tli: entry.tli,
            lsn_from: entry.lsn_from,
            lsn_to: entry.lsn_to,
            serves_from: entry.serves_from,
            key_min: key(&entry.key_min),
            key_max: key(&entry.key_max),
            rows: entry.rows,
            bytes: entry.bytes,
            base: entry.base.map(|base| base.0.simple().to_string()),
        }
    }
}

/// Event layers have no keys.
fn entry_without_keys(bytes: &KeyBytes) -> bool {
    bytes.0.iter().all(|byte| *byte == 0)
}

/// A key for people; bytes that this version does not know as they are.
fn key(bytes: &KeyBytes) -> String {
    if entry_without_keys(bytes) {
        return String::new();
    }
    match Key::from_bytes(bytes) {
        Some(key) => key.to_string(),
        None => super::hex::plain(&bytes.0),
    }
}
