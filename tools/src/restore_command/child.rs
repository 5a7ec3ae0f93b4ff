//! `--as NAME`: the restored server's own timeline, a child of the one that is restored.

use crate::cli::interrupt::Interruptible;
use crate::cli::{Session, exit};
use anyhow::Context;
use std::sync::{Mutex, PoisonError};
use tokio::task::JoinHandle;
use zenith_manifest::names::NameError;
use zenith_manifest::{Ancestor, Branch, Names};
use zenith_reader::{Resolved, Snapshot};
use zenith_store::TimelineId;

/// A timeline that is made in the course of a restore, which may end at any moment.
#[derive(Debug)]
pub(super) struct Child {
    /// Its name.
    pub(super) name: String,
    /// The id that it will get.
    pub(super) id: TimelineId,
    making: Mutex<Making>,
}

#[derive(Debug, Default)]
enum Making {
    #[default]
    NotBegun,
    Begun(JoinHandle<Result<(), NameError>>),
    Ended,
}

impl Child {
    /// A name that nobody has.
    pub(super) async fn new(session: &Session, name: &str) -> anyhow::Result<Child> {
        let free = session.names.check_free(name, None).await;
        free.with_context(|| format!("--as {name}"))?;
        Ok(Child::with_id(name, TimelineId(session.env.ids.fresh())))
    }

    fn with_id(name: &str, id: TimelineId) -> Child {
        Child { name: name.to_owned(), id, making: Mutex::default() }
    }

    /// Makes the timeline, branched off where the target is: the new server's own WAL begins there.
    pub(super) async fn make(
        &self,
        names: &Names,
        snapshot: &Snapshot,
        resolved: &Resolved,
    ) -> anyhow::Result<()> {
        let parent = snapshot.timeline().id();
        let ancestor = Ancestor { timeline: parent, lsn: resolved.lsn, tli: resolved.tli };
        self.begin(names, Branch::new(self.id, ancestor, resolved.last_record.start));
        self.made().await.with_context(|| format!("--as {}", self.name))
    }

    /// Begins to make the timeline in a task of its own, which goes on when the restore is dropped: whoever gives the name up
    /// has to know how it ended.
    fn begin(&self, names: &Names, branch: Branch) {
        let (names, name) = (names.clone(), self.name.clone());
        let making = tokio::spawn(async move { names.create_branch(&name, &branch).await.map(drop) });
        *self.state() = Making::Begun(making);
    }

    /// Waits until it is made. May be dropped, and asked again.
    async fn made(&self) -> anyhow::Result<()> {
        let ended = std::future::poll_fn(|context| {
            let mut state = self.state();
            let Making::Begun(making) = &mut *state else { return std::task::Poll::Ready(Ok(Ok(()))) };
            let ended = std::pin::Pin::new(making).poll(context);
            if ended.is_ready() {
                *state = Making::Ended;
            }
            ended
        });
        Ok(ended.await??)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The restore has failed: gives the name up, so that it may be taken again. Returns the failure; what went wrong with
    /// giving up is a note behind it.
    pub(super) async fn give_up(
        &self,
        interruptible: &Interruptible,
        names: &Names,
        failure: anyhow::Error,
    ) -> anyhow::Error {
        if matches!(*self.state(), Making::NotBegun) {
            return failure;
        }
        let given_up = interruptible.unless_interrupted(async {
            // Whether it failed or not: the store knows, and is asked next.
            drop(self.made().await);
            match names.tombstone(&self.name, self.id).await {
                // It was never made, or somebody else was faster.
                Ok(()) | Err(NameError::NotFound { .. } | NameError::Taken { .. }) => Ok(()),
                Err(error) => Err(anyhow::Error::from(error)),
            }
        });
        match given_up.await {
            Ok(()) => failure,
            Err(error) => anyhow::anyhow!(
                "{}\nnote: the name \"{}\" could not be given up and stays taken, by timeline {}, which holds nothing ({}): \
                 choose another one",
                exit::message_of(&failure),
                self.name,
                self.id,
                exit::message_of(&error)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::origin::Origin;
    use std::sync::Arc;
    use zenith_pgformat::Lsn;
    use zenith_pgformat::wal_name::WalSegSize;
    use zenith_store::{ClusterPaths, Store};
    use zenith_testkit::env::test_env;
    use zenith_testkit::faults::{Fault, FaultStore, Faults, Operation, Rule};

    /// Names in a store that fails as it is told, and a child that is about to be made.
    async fn child(seed: u64) -> (Names, Faults, Child, Branch) {
        let env = test_env(seed);
        let store = Store::memory();
        let objects = FaultStore::new(Arc::clone(&store.objects), Arc::clone(&env.clock), seed);
        let faults = objects.faults();
        let names = Names::new(Arc::new(objects), env.clone(), ClusterPaths::new(&store.prefix, "main"));
        let child = Child::with_id("copy", TimelineId(env.ids.fresh()));
        let origin = Origin { system_identifier: 7, segment_size: WalSegSize::DEFAULT };
        let parent = origin.identity(TimelineId(env.ids.fresh()));
        names.create_timeline("parent", &parent).await.expect("created");
        let ancestor = Ancestor { timeline: parent.timeline, lsn: Lsn(1000), tli: 1 };
        let branch = Branch::new(child.id, ancestor, Lsn(900));
        (names, faults, child, branch)
    }

    async fn give_up(child: &Child, names: &Names, failure: anyhow::Error) -> anyhow::Error {
        child.give_up(&Interruptible::begin().expect("a folder"), names, failure).await
    }

    async fn is_free(names: &Names) -> bool {
        matches!(names.resolve("copy").await, Err(NameError::NotFound { .. }))
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_given_up_is_told_behind_the_failure_that_came_first() {
        let (names, faults, child, branch) = child(1).await;
        child.begin(&names, branch);
        child.made().await.expect("made");
        faults.add(Rule::new(Fault::Denied).on(Operation::Put).at("names/"));
        let failure = give_up(&child, &names, anyhow::anyhow!("the disk is full").context("writing x")).await;
        let text = exit::message_of(&failure);
        let (first, note) = text.split_once('\n').expect("a note");
        assert_eq!(first, "writing x: the disk is full");
        assert!(
            note.starts_with("note: the name \"copy\"") && note.contains(&child.id.to_string()),
            "{note}"
        );
        faults.clear();
        assert!(!is_free(&names).await);
        let failure = give_up(&child, &names, anyhow::anyhow!("the disk is full")).await;
        assert_eq!(failure.to_string(), "the disk is full");
        assert!(is_free(&names).await);
    }

    #[tokio::test]
    async fn a_name_that_was_being_made_when_the_restore_ended_is_given_up() {
        let (names, _faults, child, branch) = child(2).await;
        child.begin(&names, branch);
        // The restore is dropped here, before anything was made.
        let failure = give_up(&child, &names, anyhow::anyhow!("ended by SIGINT")).await;
        assert_eq!(failure.to_string(), "ended by SIGINT");
        assert!(is_free(&names).await);
        assert!(names.identity(child.id).await.is_ok(), "it was waited for: it was made, and then given up");
    }

    #[tokio::test]
    async fn a_name_that_was_never_begun_or_never_made_leaves_the_failure_as_it_is() {
        let (names, faults, child, branch) = child(3).await;
        faults.add(Rule::new(Fault::Denied));
        let failure = give_up(&child, &names, anyhow::anyhow!("no such target")).await;
        assert_eq!(failure.to_string(), "no such target");
        faults.clear();
        faults.add(Rule::new(Fault::Denied).on(Operation::Put));
        child.begin(&names, branch);
        assert!(child.made().await.is_err());
        faults.clear();
        let failure = give_up(&child, &names, anyhow::anyhow!("denied")).await;
        assert_eq!(failure.to_string(), "denied");
        assert!(is_free(&names).await);
    }
}
