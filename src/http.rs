//! stub
use crate::{replica::Replica, sql::Sql};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
pub struct Door {
    pub draining: AtomicBool,
    pub sql: Sql,
    pub replica: Arc<Replica>,
}
impl Door {
    pub fn new(sql: Sql, replica: Arc<Replica>) -> Arc<Self> {
        Arc::new(Self { draining: AtomicBool::new(false), sql, replica })
    }
}
pub async fn serve(_l: tokio::net::TcpListener, _d: Arc<Door>, closing: tokio_util::sync::CancellationToken) {
    closing.cancelled().await
}
