//! `zenith_restore --replay`: the way out that needs nothing of ours. Writes a base image as it was copied, with
//! `recovery.signal` and a `restore_command`, for PostgreSQL's own recovery.

use crate::restore::config::{self, Change, Host, Needs};
use crate::restore::layout::{DIRECTORIES, Owner, Target, explain};
use crate::restore::small_files::{self, database_directory, is_kept};
use crate::restore::tablespaces::{self, Placed, TablespaceMapping};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use zenith_ingest::base::{SmallFile, read_base_wal, read_small_files};
use zenith_ingest::model::{Parameters, RelSize, ReplOrigin, SlruSize, Tablespace};
use zenith_layers::{
    CacheOptions, Key, KeyClass, KeyRange, LayerCaches, LayerSet, LayerStore, ReadMode, Slru, Value,
};
use zenith_manifest::{BaseImage, BaseKind};
use zenith_pgformat::rel::{GLOBAL_TABLESPACE, RelFile};
use zenith_pgformat::relmap::RELMAP_FILE;
use zenith_pgformat::wal_name::WalFile;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Oid, RELSEG_SIZE, Tli, slru, two_phase};
use zenith_reader::Timeline;

/// Rows of the base image that are read at a time: 8 MB of pages.
const ROWS: usize = 1024;
/// Longer lists of small values are read in pieces of this many.
const SMALL_ROWS: usize = 65_536;

/// How a base image is written.
pub struct ReplayOptions {
    /// The data directory to be made.
    pub target: PathBuf,
    /// `-T OLD=NEW`.
    pub tablespaces: Vec<TablespaceMapping>,
    /// To whom the files go.
    pub owner: Option<Owner>,
    /// The machine that the server will run on.
    pub host: Arc<dyn Host>,
    /// `restore_command`.
    pub restore_command: String,
    /// `recovery_target_…` settings.
    pub recovery_target: Vec<(&'static str, String)>,
}

/// What was written.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ReplayReport {
    /// The base image.
    pub base: String,
    /// Where recovery begins.
    pub redo: Lsn,
    /// Where it is consistent.
    pub end: Lsn,
    /// PostgreSQL's timeline number of the base image.
    pub tli: Tli,
    /// Forks of relations.
    pub forks: usize,
    /// Bytes of relations.
    pub bytes: u64,
    /// What differs in the configuration.
    pub changes: Vec<Change>,
    /// What recovery was told.
    pub recovery: Vec<(String, String)>,
}

/// The newest base image that recovery to `lsn` can begin with, and the timeline that holds it.
pub fn base_for(timeline: &Timeline, lsn: Lsn) -> Result<(Timeline, BaseImage)> {
    let ranges = timeline.ranges();
    let usable = ranges.iter().filter(|range| range.from <= lsn && lsn <= range.to && range.base.end <= lsn);
    let Some(base) = usable.map(|range| &range.base).max_by_key(|base| base.end).cloned() else {
        bail!("no base image of timeline {} ends at or before {lsn}", timeline.id());
    };
    let mut home = Some(timeline);
    while let Some(at) = home {
        if at.root().base(base.id).is_some() {
            return Ok((at.clone(), base));
        }
        home = at.parent();
    }
    bail!("base image {} belongs to no timeline on the way to {}", base.id.0.simple(), timeline.id())
}

/// The values of one base image.
struct Image<'a> {
    home: &'a Timeline,
    objects: Arc<dyn object_store::ObjectStore>,
    base: &'a BaseImage,
    layers: LayerSet,
}

impl Image<'_> {
    /// All small values of a class, by key.
    async fn states(&self, class: KeyClass) -> Result<Vec<(Key, Bytes)>> {
        let mut found = Vec::new();
        let mut range = Some(KeyRange::class(class));
        while let Some(wanted) = range {
            let (rows, rest) = self.chunk(wanted, SMALL_ROWS).await?;
            found.extend(rows);
            range = rest;
        }
        Ok(found)
    }

    /// The first values of a range, and what is left of it.
    async fn chunk(&self, range: KeyRange, rows: usize) -> Result<(Vec<(Key, Bytes)>, Option<KeyRange>)> {
        let mode = ReadMode::From(self.base.id);
        let chunk = self.layers.history_chunk(range, self.base.redo, mode, rows).await?;
        let mut found = Vec::with_capacity(chunk.histories.len());
        for history in chunk.histories {
            match history.rows.into_iter().next().map(|row| row.value) {
                Some(Value::State(bytes) | Value::Page(bytes)) => found.push((history.key, bytes)),
                _ => bail!(
                    "base image {}: {} has no value of a base image",
                    self.base.id.0.simple(),
                    history.key
                ),
            }
        }
        Ok((found, chunk.rest))
    }
}

/// Writes the directory.
///
/// # Errors
/// A target that is not empty, a damaged base image, a disk that is full: nothing stays behind then.
pub async fn write_base_image(
    objects: Arc<dyn object_store::ObjectStore>,
    home: &Timeline,
    base: &BaseImage,
    options: &ReplayOptions,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<ReplayReport> {
    let root = std::path::absolute(&options.target)?;
    let store = LayerStore::new(
        Arc::clone(&objects),
        home.paths().clone(),
        LayerCaches::new(CacheOptions::default()),
    );
    let entries: Vec<_> =
        home.entries().iter().filter(|entry| entry.base == Some(base.id)).cloned().collect();
    let image = Image { home, objects, base, layers: LayerSet::new(store, entries, None)? };
    let small = read_small_files(&*image.objects, home.paths(), base.id).await?;
    let target = Target::new(&root, small_files::group_access(&small), options.owner, true);
    let mut undo = target.undo();
    target.claim(&root, "target directory", &mut undo)?;
    for directory in DIRECTORIES {
        target.make_directory(directory)?;
    }
    let mut locations = Vec::new();
    for (key, bytes) in image.states(KeyClass::Tablespace).await? {
        locations.push((key.spc, Tablespace::decode(&bytes)?.location));
    }
    let placed = tablespaces::place(locations, &options.tablespaces, &root)?;
    tablespaces::make(&target, &placed, &mut undo)?;
    write_databases(&image, &target).await?;
    let (forks, bytes) = write_relations(&image, &target, progress).await?;
    write_slrus(&image, &target).await?;
    for (key, content) in image.states(KeyClass::TwoPhase).await? {
        target.write(&format!("pg_twophase/{}", two_phase::file_name(key.spc)), &content)?;
    }
    let (changes, recovery) = write_files(&image, &target, small, &placed, options).await?;
    write_wal(&image, &target).await?;
    target.sync_directories()?;
    for directory in std::iter::once(&root).chain(placed.iter().filter_map(|placed| placed.new.as_ref())) {
        let file = File::open(directory).map_err(|error| explain(error, directory))?;
        rustix::fs::syncfs(file).with_context(|| format!("syncing {}", directory.display()))?;
    }
    undo.keep();
    Ok(ReplayReport {
        base: base.id.0.simple().to_string(),
        redo: base.redo,
        end: base.end,
        tli: base.tli,
        forks,
        bytes,
        changes,
        recovery,
    })
}

/// Directories of databases, their PG_VERSION and relation maps.
async fn write_databases(image: &Image<'_>, target: &Target) -> Result<()> {
    for (key, _) in image.states(KeyClass::Database).await? {
        let directory = database_directory(key.spc, key.db);
        target.make_directory(&directory)?;
    }
    for (key, content) in image.states(KeyClass::RelMap).await? {
        let directory = database_directory(key.spc, key.db);
        target.make_directory(&directory)?;
        target.write(&format!("{directory}/{RELMAP_FILE}"), &content)?;
        if key.spc != GLOBAL_TABLESPACE {
            target.write(&format!("{directory}/PG_VERSION"), b"15\n")?;
        }
    }
    Ok(())
}

/// Files of relations, in their full lengths; a block that the image does not hold is a hole, which reads as zeros.
/// Pages are written as they were copied: recovery makes torn ones whole.
async fn write_relations(
    image: &Image<'_>,
    target: &Target,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(usize, u64)> {
    let mut directories: BTreeSet<(Oid, Oid)> = BTreeSet::new();
    let (mut forks, mut total) = (0, 0);
    for (key, bytes) in image.states(KeyClass::RelSize).await? {
        let fork = Fork::from_number(key.fork).with_context(|| format!("{key}: no such fork"))?;
        let blocks = RelSize::decode(&bytes).with_context(|| key.to_string())?.blocks;
        if directories.insert((key.spc, key.db)) {
            target.make_directory(&database_directory(key.spc, key.db))?;
        }
        for segment in 0..=blocks.saturating_sub(1) / RELSEG_SIZE {
            let file = RelFile { node: key.node(), fork, segment };
            let length =
                u64::from(blocks.saturating_sub(file.first_block()).min(RELSEG_SIZE)) * BLCKSZ as u64;
            let created = target.create(&file.path(), target.file_mode())?;
            created.set_len(length).map_err(|error| explain(error, &target.path(file.path())))?;
        }
        forks += 1;
        total += u64::from(blocks) * BLCKSZ as u64;
    }
    let mut range = Some(KeyRange::class(KeyClass::RelBlock));
    let mut open: Option<(RelFile, File)> = None;
    let mut done = 0;
    while let Some(wanted) = range {
        let (rows, rest) = image.chunk(wanted, ROWS).await?;
        for (key, page) in rows {
            write_block(target, &mut open, &key, &page)?;
            done += page.len() as u64;
        }
        progress(done, total);
        range = rest;
    }
    Ok((forks, total))
}

fn write_block(target: &Target, open: &mut Option<(RelFile, File)>, key: &Key, page: &Bytes) -> Result<()> {
    if page.is_empty() {
        return Ok(());
    }
    if page.len() != BLCKSZ {
        bail!("{key}: a page of {} bytes", page.len());
    }
    let fork = Fork::from_number(key.fork).with_context(|| format!("{key}: no such fork"))?;
    let wanted = RelFile { node: key.node(), fork, segment: key.block / RELSEG_SIZE };
    let path = || target.path(wanted.path());
    let file = match open {
        Some((file, open)) if *file == wanted => open,
        other => {
            let opened = OpenOptions::new()
                .write(true)
                .open(path())
                .with_context(|| format!("{key}: the base image has no size for {}", wanted.path()))?;
            &mut other.insert((wanted, opened)).1
        }
    };
    let offset = u64::from(key.block - wanted.first_block()) * BLCKSZ as u64;
    file.write_all_at(page, offset).map_err(|error| explain(error, &path()))
}

async fn write_slrus(image: &Image<'_>, target: &Target) -> Result<()> {
    let path = |key: &Key| {
        let slru = Slru::from_number(key.spc).with_context(|| format!("{key}: no such SLRU"))?;
        anyhow::Ok(format!("{}/{}", slru.directory(), slru::segment_name(key.db)))
    };
    for (key, bytes) in image.states(KeyClass::SlruSize).await? {
        let pages = SlruSize::decode(&bytes).with_context(|| key.to_string())?.pages;
        let path = path(&key)?;
        let file = target.create(&path, target.file_mode())?;
        let length = u64::from(pages) * BLCKSZ as u64;
        file.set_len(length).map_err(|error| explain(error, &target.path(&path)))?;
    }
    let mut range = Some(KeyRange::class(KeyClass::SlruPage));
    while let Some(wanted) = range {
        let (rows, rest) = image.chunk(wanted, ROWS).await?;
        for (key, page) in rows {
            let path = target.path(path(&key)?);
            let file = OpenOptions::new().write(true).open(&path).map_err(|error| explain(error, &path))?;
            let offset = u64::from(key.block) * BLCKSZ as u64;
            file.write_all_at(&page, offset).map_err(|error| explain(error, &path))?;
        }
        range = rest;
    }
    Ok(())
}

type Settings = Vec<(String, String)>;

/// Configuration, what recovery needs, and the control file, which comes last.
async fn write_files(
    image: &Image<'_>,
    target: &Target,
    small: BTreeMap<String, SmallFile>,
    placed: &[Placed],
    options: &ReplayOptions,
) -> Result<(Vec<Change>, Settings)> {
    let missing = |what: &str| format!("base image {} holds no {what}", image.base.id.0.simple());
    let control = small.get("global/pg_control").cloned().with_context(|| missing("global/pg_control"))?;
    let label = small.get("backup_label").cloned();
    let parameters = image.states(KeyClass::Parameters).await?;
    let (_, parameters) = parameters.first().with_context(|| missing("parameters"))?;
    let origins = image.states(KeyClass::ReplOrigin).await?;
    let needs = Needs {
        parameters: Parameters::decode(parameters)?,
        prepared: image.states(KeyClass::TwoPhase).await?.len(),
        origins: origins.len(),
        subscriptions: true,
        archive_command: None,
        lazy: None,
    };
    let mut files: BTreeMap<String, SmallFile> =
        small.into_iter().filter(|(path, _)| is_kept(path)).collect();
    let changes = config::rewrite(&mut files, &needs, options.host.as_ref(), target.file_mode())?;
    let recovery = recovery_settings(options);
    append_settings(&mut files, &recovery, target.file_mode());
    small_files::write_kept(target, &files)?;
    if !origins.is_empty() {
        let mut progress = Vec::new();
        for (key, bytes) in &origins {
            let origin = u16::try_from(key.spc).with_context(|| key.to_string())?;
            progress.push((origin, ReplOrigin::decode(bytes)?.remote_lsn));
        }
        target.write("pg_logical/replorigin_checkpoint", &small_files::origin_checkpoint(&progress))?;
    }
    target.write("recovery.signal", b"")?;
    match (image.base.kind, label) {
        (BaseKind::Online, Some(label)) => {
            target.write("backup_label", &label.content)?;
            let map = tablespace_map(placed);
            if !map.is_empty() {
                target.write("tablespace_map", map.as_bytes())?;
            }
        }
        (BaseKind::Online, None) => bail!(missing("backup_label")),
        (BaseKind::Directory, _) => {}
    }
    target.write("global/pg_control", &control.content)?;
    Ok((changes, recovery))
}

/// `restore_command` and the target, then what to do there.
fn recovery_settings(options: &ReplayOptions) -> Settings {
    let mut settings = vec![("restore_command".to_owned(), options.restore_command.clone())];
    settings.extend(options.recovery_target.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    settings.push(("recovery_target_action".to_owned(), "promote".to_owned()));
    settings
}

/// To postgresql.auto.conf, which is read last.
fn append_settings(files: &mut BTreeMap<String, SmallFile>, settings: &Settings, mode: u32) {
    let file = files
        .entry("postgresql.auto.conf".to_owned())
        .or_insert_with(|| SmallFile { mode, content: Bytes::new() });
    let mut text = String::from_utf8_lossy(&file.content).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, value) in settings {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"));
    }
    file.content = Bytes::from(text);
}

/// `OID LOCATION` a line; recovery makes the links anew from it (`read_tablespace_map`, xlogrecovery.c).
fn tablespace_map(placed: &[Placed]) -> String {
    let mut text = String::new();
    for tablespace in placed {
        if let Some(new) = &tablespace.new {
            let escaped =
                new.display().to_string().replace('\\', "\\\\").replace('\n', "\\\n").replace('\r', "\\\r");
            let _ = writeln!(text, "{} {escaped}", tablespace.oid);
        }
    }
    text
}

/// The WAL that the base image carries, so that recovery reaches its end without the archive; the last segment's rest
/// is zeros. Where the archive has a segment, PostgreSQL takes that one.
async fn write_wal(image: &Image<'_>, target: &Target) -> Result<()> {
    let BaseImage { id, tli, redo, end, .. } = *image.base;
    let size = image.home.segment_size();
    for segment in size.segment_of(redo)..=size.segment_of(Lsn(end.0.saturating_sub(1))) {
        let paths = image.home.paths();
        let Some(content) = read_base_wal(&*image.objects, paths, id, tli, segment, size).await? else {
            continue;
        };
        let path = format!("pg_wal/{}", WalFile::Segment { tli, segment }.name(size));
        let file = target.create(&path, target.file_mode())?;
        let written = file.write_all_at(&content, 0).and_then(|()| file.set_len(size.bytes()));
        written.map_err(|error| explain(error, &target.path(&path)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_settings_are_quoted_and_come_last() {
        let content = Bytes::from_static(b"restore_command = 'old'");
        let mut files =
            BTreeMap::from([("postgresql.auto.conf".to_owned(), SmallFile { mode: 0o600, content })]);
        let settings = vec![("restore_command".to_owned(), "it's \\ new".to_owned())];
        append_settings(&mut files, &settings, 0o600);
        let text = String::from_utf8_lossy(&files["postgresql.auto.conf"].content).into_owned();
        assert_eq!(text, "restore_command = 'old'\nrestore_command = 'it''s \\\\ new'\n");
    }

    #[test]
    fn the_tablespace_map_holds_the_new_places() {
        let placed = |oid, new: Option<&str>| Placed { oid, old: String::new(), new: new.map(PathBuf::from) };
        assert_eq!(tablespace_map(&[placed(16_400, Some("/new")), placed(16_401, None)]), "16400 /new\n");
    }
}
