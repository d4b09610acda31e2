//! `reconnect`: all clients are connected, lose their connections at once, and come back.

use super::Stage;
use crate::client::Part;
use crate::fleet::Idle;

pub(super) fn run(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let clients = stage.subscribers;
    let (concurrent, session) = (stage.concurrent(), stage.settings.session);
    for (cuts, name) in [(false, "connected"), (true, "came back")] {
        let begun = stage.begin()?;
        if cuts {
            stage.fleet.cut(0..clients);
        }
        stage.fleet.connect(0..clients, concurrent, session, |_| Part::Idle, &mut Idle)?;
        let count = stage.fleet.connect_ns.len();
        stage.end(begun, stage.fleet.clock.now_ns(), (name, "clients"), count)?;
        stage.add_handshakes();
    }
    if stage.args.load.persistent {
        return stage.fleet.forget(0..clients);
    }
    stage.fleet.disconnect(0..clients);
    Ok(())
}
