//! `zenith pin`: what keeps history for computes that are not filled yet.

use crate::cli::{Session, Settings, output};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;
use zenith_manifest::{Holder, Pin};
use zenith_store::Env;

/// Options of `zenith pin`.
#[derive(Args, Debug, Clone)]
pub struct PinArgs {
    /// What is done with pins.
    #[command(subcommand)]
    pub command: Command,
}

/// What is done with pins.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Shows the pins of computes
    List,
    /// Removes a compute's pin, once it is filled or gone
    #[command(after_help = "\
A compute that is not filled cannot read its pages any more once its history is collected. The data directory's zenith/pin
holds the pin's id.")]
    End {
        /// Its id, as `zenith pin list` shows it
        id: Uuid,
    },
}

/// Does what is asked.
pub async fn run(env: &Env, settings: &Settings, args: &PinArgs) -> anyhow::Result<()> {
    let session = Session::open(env, settings, false)?;
    match args.command {
        Command::List => {
            let pins: Vec<(Uuid, Pin)> =
                session.names.pins().await?.into_iter().filter_map(of_compute).collect();
            list(settings, &pins)
        }
        Command::End { id } => {
            let pin = session.names.end_pin(id).await?;
            if settings.json {
                return output::json(&shown(id, &pin));
            }
            output::line(&format!("pin {id} is gone: it kept LSN {} of timeline {}", pin.lsn, pin.timeline))
        }
    }
}

fn of_compute(pin: Pin) -> Option<(Uuid, Pin)> {
    match pin.holder {
        Holder::Compute(id) => Some((id, pin)),
        Holder::Branch(_) => None,
    }
}

fn list(settings: &Settings, pins: &[(Uuid, Pin)]) -> anyhow::Result<()> {
    if settings.json {
        let pins: Vec<serde_json::Value> = pins.iter().map(|(id, pin)| shown(*id, pin)).collect();
        return output::json(&pins);
    }
    if pins.is_empty() {
        return output::line("no compute has a pin");
    }
    pins.iter().try_for_each(|(id, pin)| {
        output::line(&format!("{} keeps LSN {} of timeline {}", id.simple(), pin.lsn, pin.timeline))
    })
}

fn shown(id: Uuid, pin: &Pin) -> serde_json::Value {
    json!({ "id": id.simple().to_string(), "timeline": pin.timeline.to_string(), "lsn": pin.lsn })
}
