//! `zenith_restore wal %f %p`: PostgreSQL's `restore_command`.
//!
//! 0: found; 1: certainly not in the archive; 255: anything else. PostgreSQL ends recovery, and promotes, on any
//! status from 1 to 125, so an outage must never look like an absence (facts/peers.md §3.5).

use crate::cli::deadline::{ARCHIVING, Step, answer_within};
use crate::cli::{Session, StoreOptions, TimelineChoice, exit};
use anyhow::{Context, bail};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zenith_ingest::archive::{WalArchive, check_segment};
use zenith_pgformat::wal_name::WalFile;
use zenith_store::Env;

/// Fetches the file to `target` within [`ARCHIVING`]; gives the exit status. Errors are said here.
pub fn run(program: &str, env: &Env, store: &StoreOptions, name: &str, target: &Path) -> u8 {
    match fetch_within(env, ARCHIVING, store, name, target) {
        Ok(true) => exit::DONE,
        Ok(false) => {
            tracing::info!("{name} is not in the archive");
            exit::FAILED
        }
        Err(error) => {
            exit::report(program, &error);
            exit::UNKNOWN
        }
    }
}

/// Fetches the file within `limit`; `false` if it certainly is not there.
pub fn fetch_within(
    env: &Env,
    limit: Duration,
    store: &StoreOptions,
    name: &str,
    target: &Path,
) -> anyhow::Result<bool> {
    let step = Step::default();
    let work = {
        let (env, store, step) = (env.clone(), store.clone(), step.clone());
        let (name, target) = (name.to_owned(), target.to_owned());
        move || {
            step.begin("reading the configuration");
            let settings = store.resolve()?;
            let runtime = exit::runtime(0)?;
            let found = runtime.block_on(async {
                step.begin("opening the store");
                let session = Session::open(&env, &settings, false)?;
                fetch(&session, &settings.timeline, &name, &target, &step).await
            });
            runtime.shutdown_background();
            found
        }
    };
    answer_within(env, limit, &step, work)
        .with_context(|| format!("cannot tell whether {name} is in the archive, or cannot write it"))
}

/// Fetches the file from the timeline or its ancestors; `false` if it certainly is not there.
pub async fn fetch(
    session: &Session,
    timeline: &TimelineChoice,
    name: &str,
    target: &Path,
    step: &Step,
) -> anyhow::Result<bool> {
    step.begin("reading name and identity of the timeline");
    let identity = session.identity(timeline).await?;
    let archive = session.archive(&identity)?;
    let Some(file) = WalFile::parse(name, archive.segment_size()) else {
        bail!("\"{name}\" is no name of a WAL file of timeline {}", identity.timeline);
    };
    step.begin("reading the histories of its ancestors");
    let chain = session.archive_chain(&identity).await?;
    step.begin(format!("reading {name} from the store"));
    let Some(content) = chain.find(file).await? else { return Ok(false) };
    check(name, file, &archive, &content)?;
    step.begin(format!("writing {}", target.display()));
    write_whole(target, &content)?;
    Ok(true)
}

/// PostgreSQL takes a segment that is not its own for the end of the archive, and promotes.
fn check(name: &str, file: WalFile, archive: &WalArchive, content: &[u8]) -> anyhow::Result<()> {
    let WalFile::Segment { segment, .. } = file else { return Ok(()) };
    check_segment(content, segment, archive.segment_size(), archive.system_identifier())
        .map(drop)
        .with_context(|| format!("the archive's {name} is damaged: restore it from a copy of the store"))
}

/// Under the final name the file is either whole and durable, or not there.
pub(crate) fn write_whole(target: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(".zenith.tmp");
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, target)?;
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("RECOVERYXLOG");
        write_whole(&target, b"old and longer").expect("written");
        write_whole(&target, b"new").expect("written");
        assert_eq!(std::fs::read(&target).expect("there"), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 1);
    }

    #[test]
    fn a_target_that_cannot_be_written_is_named_and_nothing_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let error = write_whole(&folder.path().join("no/such/RECOVERYXLOG"), b"x").expect_err("refused");
        assert!(error.to_string().contains("RECOVERYXLOG"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
    }
}
