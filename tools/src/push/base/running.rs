//! The base image of a running server.

use super::feed::{Feed, FeedStart};
use super::libpq::{ConnectOptions, Connection};
use super::online::{self, Frame, Tablespace};
use super::password;
use super::preflight::{self, ServerFacts};
use super::register::{Destination, Gathered};
use crate::cli::{Session, Settings, output, progress, time};
use crate::push::command::BaseArgs;
use crate::push::origin::Origin;
use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::sync::mpsc::Receiver;
use zenith_ingest::base::{BaseBuilder, BaseOptions};
use zenith_manifest::{BaseId, BaseKind};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::Env;

type Frames = Receiver<Result<Frame, online::StreamError>>;

/// Stores everything that the base image consists of.
pub(super) async fn gather(env: &Env, settings: &Settings, args: &BaseArgs) -> anyhow::Result<Gathered> {
    let (mut connection, facts) = {
        let args = args.clone();
        tokio::task::spawn_blocking(move || connect_and_ask(&args)).await.context("connecting")??
    };
    let segment_size = facts.check()?;
    let session = Session::open(env, settings, true)?;
    let origin = Origin { system_identifier: facts.system_identifier, segment_size };
    let destination = Destination::find(session, settings, args, origin).await?;
    if facts.archive_mode == "off" {
        output::say(
            "zenith_push: archive_mode is off on the server: the base image can be read only after its WAL is \
             archived; set archive_mode = on and archive_command = 'zenith_push wal \"%p\"'",
        );
    }
    if let Err(error) = online::hold_wal(&mut connection) {
        tracing::warn!(
            "no replication slot to hold WAL with ({error}): the base image fails at its end if the server removes WAL meanwhile"
        );
    }
    let bar = progress::spinner("waiting for the server's checkpoint");
    let mut frames = online::start(connection, online::command(args.checkpoint, args.max_rate))
        .context("cannot start a thread")?;
    let (redo, tli, tablespaces) = announced(&mut frames).await?;
    bar.finish_and_clear();
    destination.would_accept(BaseKind::Online, tli, redo).await?;
    let backup = Backup { facts: &facts, segment_size, redo, tli };
    let builder = backup.builder(env, &destination, &tablespaces)?;
    let total = tablespaces.iter().map(|tablespace| tablespace.kilobytes.saturating_mul(1024)).sum();
    let bar = progress::bytes("base image", total);
    let feed = Feed::new(FeedStart { redo, tli, segment_size }, builder);
    let gathered = backup.receive(env, destination, feed, &mut frames, &bar).await;
    bar.finish_and_clear();
    gathered
}

/// Connects, asking for a password where one is wanted and may be asked for.
fn connect_and_ask(args: &BaseArgs) -> anyhow::Result<(Connection, ServerFacts)> {
    let mut options = ConnectOptions {
        connection_string: args.dbname.clone(),
        host: args.host.clone(),
        port: args.port.clone(),
        user: args.username.clone(),
        password: None,
    };
    if args.password {
        options.password = password::ask();
    }
    let mut connected = Connection::connect(&options);
    if let Err(failed) = &connected
        && failed.needs_password
        && !args.no_password
        && options.password.is_none()
    {
        options.password = password::ask();
        if options.password.is_some() {
            connected = Connection::connect(&options);
        }
    }
    let mut connection = connected.map_err(|failed| refused_connection(&failed.error.message))?;
    let facts = preflight::ask(&mut connection).context("the server cannot be backed up")?;
    Ok((connection, facts))
}

/// With the remedy, where the server's words have one.
fn refused_connection(message: &str) -> anyhow::Error {
    let remedy = if message.contains("max_wal_senders (currently 0)") {
        ": with wal_level = minimal and max_wal_senders = 0 no base image can be taken; set wal_level = replica and \
         max_wal_senders = 10, and restart the server"
    } else if message.contains("pg_hba.conf") {
        ": add a line for database \"replication\" to pg_hba.conf and reload it"
    } else if message.contains("must be superuser or replication role") {
        ": ALTER ROLE ... REPLICATION, or choose another role with -U"
    } else if message.contains("max_wal_senders") {
        ": wait until a running backup ends, or raise max_wal_senders"
    } else {
        ""
    };
    anyhow::anyhow!("cannot connect to the server: {message}{remedy}")
}

/// The first frame.
async fn announced(frames: &mut Frames) -> anyhow::Result<(Lsn, Tli, Vec<Tablespace>)> {
    match frames.recv().await.transpose()? {
        Some(Frame::Start { lsn, tli, tablespaces }) => Ok((lsn, tli, tablespaces)),
        _ => bail!("the server ended the backup before it began"),
    }
}

/// What is known when the backup has begun.
struct Backup<'a> {
    facts: &'a ServerFacts,
    segment_size: WalSegSize,
    redo: Lsn,
    tli: Tli,
}

impl Backup<'_> {
    fn builder(
        &self,
        env: &Env,
        destination: &Destination,
        tablespaces: &[Tablespace],
    ) -> anyhow::Result<BaseBuilder> {
        let options = BaseOptions {
            id: BaseId(env.ids.fresh()),
            kind: BaseKind::Online,
            tli: self.tli,
            redo: self.redo,
            // backup_label says it, which comes after the tablespaces.
            checkpoint: self.redo,
            system_identifier: self.facts.system_identifier,
            data_checksums: self.facts.data_checksums,
            spool_folder: std::env::temp_dir(),
            layer_bytes: BaseOptions::LAYER_BYTES,
        };
        let objects = std::sync::Arc::clone(&destination.session.store.objects);
        let paths = destination.session.paths(destination.identity.timeline);
        let mut builder = BaseBuilder::new(options, objects, paths, env.clone())?;
        for tablespace in tablespaces {
            if let (Some(oid), Some(location)) = (tablespace.oid, &tablespace.location) {
                builder.add_tablespace(oid, location);
            }
        }
        Ok(builder)
    }

    async fn receive(
        &self,
        env: &Env,
        destination: Destination,
        mut feed: Feed,
        frames: &mut Frames,
        bar: &ProgressBar,
    ) -> anyhow::Result<Gathered> {
        while let Some(frame) = frames.recv().await.transpose()? {
            match frame {
                Frame::Start { .. } => bail!("the server began the backup twice; is it PostgreSQL 15?"),
                Frame::Copy(data) => {
                    bar.inc(data.len() as u64);
                    feed.message(Bytes::from_owner(data)).await?;
                }
                Frame::End { lsn, tli } => {
                    if tli != self.tli {
                        bail!(
                            "the server was promoted during the backup (timeline {} to {tli}): run zenith_push base again",
                            self.tli
                        );
                    }
                    let files = feed.progress().files;
                    let finished = feed.finish(lsn, &time::rfc3339(env.clock.now())).await?;
                    tracing::debug!("{} bytes a WAL segment", self.segment_size.bytes());
                    return Ok(Gathered { destination, finished, files });
                }
            }
        }
        bail!("the server ended the backup early; its log may say why")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_too_little_wal_is_explained() {
        let message = "FATAL: number of requested standby connections exceeds max_wal_senders (currently 0)";
        let text = refused_connection(message).to_string();
        assert!(text.contains(message) && text.contains("wal_level = replica"), "{text}");
    }
}
