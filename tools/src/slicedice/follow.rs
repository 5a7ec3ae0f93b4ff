//! `--follow`: slicing as segments arrive, through outages of the store, until it is told to stop.

use super::outage::{Outage, may_pass};
use super::{Run, Summary};
use crate::cli::{exit, interrupt, output};
use std::sync::Arc;
use tokio::sync::watch;
use zenith_ingest::slicer::{Stopped, Told};

/// Asks a follower to commit what it has sliced and to end. Clones mean the same follower.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Stop {
        Stop(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Asks.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was asked.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is asked.
    async fn asked(&self) {
        // The sender lives as long as this does, so there is no error.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }

    /// Asks at the first SIGINT or SIGTERM; a second one ends the process at once.
    pub(super) fn at_signals(&self) {
        let stop = self.clone();
        tokio::spawn(async move {
            let signal = interrupt::interrupted().await;
            output::say(&format!("zenith_slicedice: {signal}: committing what is sliced"));
            stop.ask();
            interrupt::interrupted().await;
            // What is not committed is sliced again by the next run.
            std::process::exit(i32::from(exit::FAILED));
        });
    }
}

impl Run {
    /// Keeps slicing until `stop` is asked. An error that may pass, such as a store that does not answer, is waited out:
    /// slicing then goes on where the newest manifest stands. Every other error ends it.
    pub async fn follow(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let mut outage = Outage::default();
        loop {
            match self.follow_on(stop, &mut outage).await {
                Ok(()) => return Ok(()),
                Err(error) if !may_pass(&error) => return Err(error),
                // Nothing was sliced since slicing was held up; else what was cannot be committed now.
                Err(_) if stop.is_asked() && outage.is_on() => return Ok(()),
                Err(error) if stop.is_asked() => return Err(error),
                Err(error) => {
                    let pause = outage.goes_on(&error);
                    tokio::select! {
                        () = self.session.env.clock.sleep(pause) => {}
                        () = stop.asked() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn follow_on(&mut self, stop: &Stop, outage: &mut Outage) -> anyhow::Result<()> {
        if !self.wait_for_base(stop, outage).await? {
            return Ok(());
        }
        loop {
            let mut slicer = self.slicer().await?;
            let mut printed = Ok(());
            let told = |told: Told<'_>| {
                outage.is_over();
                if let Told::Report(report) = told
                    && printed.is_ok()
                {
                    printed = Summary::new(report).print(&self.settings);
                }
            };
            let stopped = slicer.follow(|| stop.is_asked(), told).await?;
            printed?;
            if !matches!(stopped, Stopped::RangeBegun { .. }) || stop.is_asked() {
                return Ok(());
            }
        }
    }

    /// `false` if it is to stop instead.
    async fn wait_for_base(&self, stop: &Stop, outage: &mut Outage) -> anyhow::Result<bool> {
        let mut said = false;
        while self.manifest.latest().await?.sliced.is_none() {
            outage.is_over();
            if !said {
                output::say("zenith_slicedice: waiting for a base image: zenith_push base takes one");
                said = true;
            }
            if stop.is_asked() {
                return Ok(false);
            }
            self.session.env.clock.sleep(self.options.poll).await;
        }
        Ok(!stop.is_asked())
    }
}

#[cfg(test)]
mod tests;
