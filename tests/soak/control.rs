//! The daemon's own control, over its socket. One function for each order, so that what the harness needs of it stands in one
//! place.

use tests::{Connection, Lab};

use crate::setup::Order;

/// One request to the control socket; the error is what it answered.
fn ask(lab: &Lab, method: &str, path: &str, body: &str) -> Result<(), String> {
    let failed = |error: tests::client::Failure| format!("{method} {path}: {error}");
    let mut socket = Connection::open_unix(&lab.path("control.sock")).map_err(failed)?;
    let answer = socket.request(method, path, &[], body.as_bytes()).map_err(failed)?;
    if answer.status == 200 {
        return Ok(());
    }
    Err(format!("{method} {path}: {} {}", answer.head.start, answer.text()))
}

/// Puts the file into effect, and waits until it is.
pub(crate) fn reload(lab: &Lab) -> Result<(), String> {
    ask(lab, "POST", "/v1/reload", "{}")
}

/// Changes a backend of the pool `web` at run time. A drain waits until the backend has no request left.
pub(crate) fn order(lab: &Lab, order: &Order) -> Result<(), String> {
    let backends = "/v1/pools/web/backends";
    match order {
        Order::Drain(member) => {
            ask(lab, "POST", &format!("{backends}/{}/drain", member.address), "")?;
            ask(lab, "GET", &format!("{backends}/{}/idle?wait=25", member.address), "")
        }
        Order::Undrain(member) => ask(lab, "POST", &format!("{backends}/{}/undrain", member.address), ""),
        Order::Weight(member, weight) => {
            let body = format!("{{\"weight\": {weight}}}");
            ask(lab, "PUT", &format!("{backends}/{}/weight", member.address), &body)
        }
        Order::Add(member) => {
            let body = format!("{{\"address\": \"{}\", \"weight\": {}}}", member.address, member.weight);
            ask(lab, "POST", backends, &body)
        }
        Order::Remove(member) => ask(lab, "DELETE", &format!("{backends}/{}", member.address), ""),
    }
}
