//! The base image of a cleanly stopped data directory.

use super::directory::StoppedDirectory;
use super::image::{FileKind, FoundFile, WalTail};
use super::register::{Destination, Gathered};
use crate::cli::{Session, Settings, progress, time};
use crate::push::command::BaseArgs;
use crate::push::origin::Origin;
use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use zenith_ingest::base::{BaseBuilder, BaseFile, BaseOptions};
use zenith_manifest::{BaseId, BaseKind};
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::xlog::{self, XlogRecord};
use zenith_pgformat::wal::{RmgrId, StreamStart, WalStream};
use zenith_pgformat::wal_name::WalFile;
use zenith_store::Env;

/// Files that were found and are not read yet.
const FOUND_MAX: usize = 256;
/// How much is read at a time.
const PIECE: usize = 1 << 20;

/// Stores everything that the base image consists of.
pub(super) async fn gather(
    env: &Env,
    settings: &Settings,
    args: &BaseArgs,
    directory: &Path,
) -> anyhow::Result<Gathered> {
    let stopped = Arc::new(StoppedDirectory::open(directory)?);
    let control = &stopped.control;
    let tli = control.checkpoint_copy.tli;
    let redo = control.checkpoint;
    let wal = last_wal(&stopped)?;
    let session = Session::open(env, settings, true)?;
    let origin =
        Origin { system_identifier: control.system_identifier, segment_size: control.wal_segment_size };
    let destination = Destination::find(session, settings, args, origin).await?;
    destination.would_accept(BaseKind::Directory, tli, redo).await?;
    let options = BaseOptions {
        id: BaseId(env.ids.fresh()),
        kind: BaseKind::Directory,
        tli,
        redo,
        checkpoint: redo,
        system_identifier: control.system_identifier,
        data_checksums: control.has_checksums(),
        spool_folder: std::env::temp_dir(),
        layer_bytes: BaseOptions::LAYER_BYTES,
    };
    let objects = Arc::clone(&destination.session.store.objects);
    let paths = destination.session.paths(destination.identity.timeline);
    let mut builder = BaseBuilder::new(options, objects, paths, env.clone())?;
    for link in &stopped.tablespaces {
        builder.add_tablespace(link.oid, &link.location);
    }
    let bar = progress::bytes("base image", 0);
    let read = read_all(&stopped, &mut builder, &bar).await;
    bar.finish_and_clear();
    read?;
    let mut tail = WalTail::new(redo, control.wal_segment_size);
    for (segment, content) in wal.segments {
        tail.add(&mut builder, segment, content.into()).await?;
    }
    tail.finish(&mut builder, wal.end).await?;
    stopped.still_stopped()?;
    let files = builder.progress().files;
    let finished = builder.finish(wal.end, &time::rfc3339(env.clock.now())).await?;
    Ok(Gathered { destination, finished, files })
}

/// Walks in a thread of its own, reads here, one file after another.
async fn read_all(
    stopped: &Arc<StoppedDirectory>,
    builder: &mut BaseBuilder,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let (sender, mut found) = mpsc::channel::<FoundFile>(FOUND_MAX);
    let walker = Arc::clone(stopped);
    let walking = tokio::task::spawn_blocking(move || {
        walker.visit(|file| sender.blocking_send(file).map_err(|_| anyhow::anyhow!("reading has ended")))
    });
    while let Some(file) = found.recv().await {
        if let FileKind::File { size } = file.kind {
            bar.inc_length(size);
            read_file(&file, size, builder, bar).await?;
        }
    }
    walking.await.context("walking the data directory")?
}

async fn read_file(
    file: &FoundFile,
    size: u64,
    builder: &mut BaseBuilder,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", file.absolute.display());
    let class = builder.begin_file(&file.path, file.mode, size)?;
    if class != BaseFile::Left {
        let mut source = File::open(&file.absolute).with_context(cannot)?;
        let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE).max(1))];
        loop {
            let length = match source.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(cannot),
            };
            builder.chunk(piece.get(..length).unwrap_or_default()).await?;
            bar.inc(length as u64);
        }
    }
    Ok(builder.end_file().await?)
}

/// The WAL from the shutdown checkpoint to its end.
struct LastWal {
    end: Lsn,
    segments: Vec<(u64, Bytes)>,
}

/// Reads the shutdown checkpoint's record in `pg_wal`: it ends the WAL, and was never archived.
fn last_wal(stopped: &StoppedDirectory) -> anyhow::Result<LastWal> {
    let control = &stopped.control;
    let (tli, size) = (control.checkpoint_copy.tli, control.wal_segment_size);
    let mut stream = WalStream::new(StreamStart {
        lsn: control.checkpoint,
        prev: Lsn::INVALID,
        tli,
        seg_size: size,
        system_identifier: control.system_identifier,
    });
    let mut segments = Vec::new();
    // The record is 114 bytes long: two segments hold it wherever it begins.
    for segment in [0, 1].map(|more| size.segment_of(control.checkpoint) + more) {
        let path = stopped.root().join("pg_wal").join(WalFile::Segment { tli, segment }.name(size));
        let content = Bytes::from(read_segment(&path, size.bytes())?);
        segments.push((segment, content.clone()));
        stream.feed(size.start_of(segment), content)?;
        let Some(record) =
            stream.next().with_context(|| format!("the shutdown checkpoint in {}", path.display()))?
        else {
            continue;
        };
        let is_shutdown =
            record.rmgr == RmgrId::XLOG && matches!(xlog::parse(&record)?, XlogRecord::CheckpointShutdown(_));
        if is_shutdown {
            return Ok(LastWal { end: record.end, segments });
        }
        break;
    }
    bail!(
        "{}: there is no shutdown checkpoint at {} where pg_control says that one is; start the server, stop it, and \
         run this again",
        stopped.root().display(),
        control.checkpoint
    )
}

fn read_segment(path: &Path, size: u64) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}, which holds the last checkpoint", path.display());
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(size).read_to_end(&mut content)).with_context(cannot)?;
    Ok(content)
}
