//! `--lazy`: what it needs of this machine, and the pin that keeps what it reads.

use crate::cli::interrupt::Interruptible;
use crate::cli::{Session, Settings, exit, postgres};
use crate::restore::lazy::Lazy;
use anyhow::{Context, bail};
use std::path::Path;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use uuid::Uuid;
use zenith_compute_dir::Reader;
use zenith_manifest::{NameError, Names, Pin};
use zenith_pgformat::Lsn;
use zenith_reader::Timeline;
use zenith_store::TimelineId;

/// The extension's library, as Cargo builds it.
const LIBRARY: &str = "libzenith_compute.so";
const READER: &str = "zenith_reader";

/// What a lazy restore needs of this machine, found before anything is read.
#[derive(Debug)]
pub(super) struct Machine {
    library: String,
    server_version_num: u32,
    reader: Reader,
}

impl Machine {
    /// Finds server, extension and page service; a socket of another page service is taken as it is.
    pub(super) fn find(settings: &Settings, shared: Option<&Reader>) -> anyhow::Result<Machine> {
        let server_version_num = postgres::server_version_num()?;
        let library = postgres::beside(LIBRARY, "ZENITH_COMPUTE_LIBRARY").with_context(|| {
            format!("--lazy needs Zenith's extension: {LIBRARY} is neither beside this program nor in ../lib/zenith")
        })?;
        let reader = match shared {
            Some(reader) => reader.clone(),
            None => private(settings)?,
        };
        Ok(Machine { library: text(&library)?, server_version_num, reader })
    }
}

/// A page service that the server starts for itself, with the same store as now.
fn private(settings: &Settings) -> anyhow::Result<Reader> {
    let program = postgres::beside(READER, "ZENITH_READER");
    let program = program.with_context(|| format!("--lazy needs {READER}: it is not beside this program"))?;
    let mut arguments =
        vec!["--store".to_owned(), settings.store.clone(), "--cluster".to_owned(), settings.cluster.clone()];
    if let Some(config) = &settings.config {
        arguments.extend(["--config".to_owned(), text(&std::path::absolute(config)?)?]);
    }
    Ok(Reader::Private { program: text(&program)?, arguments })
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

/// `unix:/run/zenith/.s.PGSQL.5432`: the socket of a page service.
pub(super) fn parse_reader(text: &str) -> Result<Reader, String> {
    const EXPECTED: &str = "expected unix:/DIRECTORY/.s.PGSQL.PORT, the socket of a zenith_reader";
    let path = text.strip_prefix("unix:").filter(|path| path.starts_with('/')).ok_or(EXPECTED)?;
    let (host, name) = path.rsplit_once('/').ok_or(EXPECTED)?;
    let port = name.strip_prefix(".s.PGSQL.").and_then(|port| port.parse().ok()).ok_or(EXPECTED)?;
    Ok(Reader::Shared { host: if host.is_empty() { "/" } else { host }.to_owned(), port })
}

/// A pin that is made in the course of a restore, which may end at any moment.
#[derive(Debug)]
pub(super) struct Keeping {
    id: Uuid,
    making: Mutex<Option<JoinHandle<Result<Pin, NameError>>>>,
}

impl Keeping {
    pub(super) fn new(session: &Session) -> Keeping {
        Keeping { id: session.env.ids.fresh(), making: Mutex::default() }
    }

    /// Pins the LSN in a task of its own, which goes on when the restore is dropped: whoever removes the pin has to know that it
    /// was made.
    async fn make(&self, names: &Names, timeline: TimelineId, lsn: Lsn) -> anyhow::Result<Pin> {
        let (names, id) = (names.clone(), self.id);
        let mut making = self.making.lock().await;
        let task = making.insert(tokio::spawn(async move { names.pin_compute(id, timeline, lsn).await }));
        let pin = task.await?;
        pin.context("the pin that keeps this LSN readable (--no-pin does without)")
    }

    /// The restore has failed: removes the pin. Returns the failure; what went wrong with removing is a note behind it.
    pub(super) async fn give_up(
        &self,
        interruptible: &Interruptible,
        names: &Names,
        failure: anyhow::Error,
    ) -> anyhow::Error {
        let given_up = interruptible.unless_interrupted(async {
            match self.making.lock().await.take() {
                None => return Ok(()),
                Some(making) if !making.is_finished() => drop(making.await),
                Some(_) => {}
            }
            match names.end_pin(self.id).await {
                // It was never made.
                Ok(_) | Err(NameError::NoPin { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        match given_up.await {
            Ok(()) => failure,
            Err(error) => anyhow::anyhow!(
                "{}\nnote: a pin may be left ({}): zenith pin end {}",
                exit::message_of(&failure),
                exit::message_of(&error),
                self.id.simple()
            ),
        }
    }
}

/// What is written for the extension, once the target is known. `stored` is the timeline without what is only archived.
pub(super) async fn lazy(
    machine: &Machine,
    keeping: Option<&Keeping>,
    session: &Session,
    stored: &Timeline,
    lsn: Lsn,
) -> anyhow::Result<Lazy> {
    if let Err(error) = stored.check(lsn) {
        bail!(
            "--lazy needs an LSN that is sliced, so that its pages can be read: run zenith_slicedice first ({error})"
        );
    }
    let (timeline, pin) = match keeping {
        Some(keeping) => {
            let pin = keeping.make(&session.names, stored.id(), lsn).await?;
            (pin.timeline, Some(keeping.id))
        }
        None => (session.names.owner(stored.id(), lsn).await?.timeline, None),
    };
    Ok(Lazy {
        library: machine.library.clone(),
        server_version_num: machine.server_version_num,
        timeline,
        reader: machine.reader.clone(),
        pin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_named_by_its_socket() {
        let shared = |host: &str, port| Ok(Reader::Shared { host: host.to_owned(), port });
        assert_eq!(parse_reader("unix:/run/zenith/.s.PGSQL.5432"), shared("/run/zenith", 5432));
        assert_eq!(parse_reader("unix:/.s.PGSQL.1"), shared("/", 1));
        for bad in
            ["/run/zenith", "unix:run/.s.PGSQL.1", "unix:/run/zenith", "unix:/run/.s.PGSQL.x", "tcp:/x"]
        {
            assert!(parse_reader(bad).is_err(), "{bad}");
        }
    }
}
