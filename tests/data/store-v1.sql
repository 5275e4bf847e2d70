PRAGMA application_id=1634166387;
PRAGMA user_version=1;
BEGIN TRANSACTION;
CREATE TABLE "agents" (
   "id" TEXT PRIMARY KEY NOT NULL,
   "created_at_ns" INTEGER NOT NULL,
   "config" TEXT NOT NULL,
   "config_at_ns" INTEGER NOT NULL,
   "is_paused" INTEGER NOT NULL,
   "terminated_at_ns" INTEGER
) STRICT;
INSERT INTO "agents" VALUES('old',1767225600000000000,'{"v":1,"program":{"kind":"inline","ref":"engines:Script"},"retry":{"attempts":5,"base_ms":200,"factor":2.0,"max_ms":60000},"overflow":{"policy":"reject","max_depth":1000,"dead_letter_max":1000},"tick_timeout_ms":60000,"quarantine_after":20}',1767225600000000000,1,NULL);
CREATE TABLE "alarms" (
   "agent" TEXT NOT NULL,
   "name" TEXT NOT NULL,
   "spec" TEXT NOT NULL,
   "next_at_ns" INTEGER,
   "last_at_ns" INTEGER,
   "missed" INTEGER NOT NULL,
   "changed_at_ns" INTEGER NOT NULL,
   PRIMARY KEY ("agent", "name")
) STRICT;
CREATE TABLE "deadletter" (
   "agent" TEXT NOT NULL,
   "id" TEXT NOT NULL,
   "seq" INTEGER NOT NULL,
   "kind" TEXT NOT NULL,
   "source" TEXT NOT NULL,
   "priority" INTEGER NOT NULL,
   "reason" TEXT NOT NULL,
   "attempts" INTEGER NOT NULL,
   "at_ns" INTEGER NOT NULL,
   "body" TEXT NOT NULL,
   PRIMARY KEY ("agent", "id")
) STRICT;
CREATE TABLE "deliveries" (
   "agent" TEXT NOT NULL,
   "id" TEXT NOT NULL,
   "seq" INTEGER NOT NULL,
   "to" TEXT NOT NULL,
   "attempts" INTEGER NOT NULL,
   "not_before_ns" INTEGER NOT NULL,
   "at_ns" INTEGER NOT NULL,
   "body" TEXT NOT NULL,
   PRIMARY KEY ("agent", "id")
) STRICT;
CREATE TABLE "inbox" (
   "agent" TEXT NOT NULL,
   "id" TEXT NOT NULL,
   "seq" INTEGER NOT NULL,
   "kind" TEXT NOT NULL,
   "source" TEXT NOT NULL,
   "priority" INTEGER NOT NULL,
   "attempts" INTEGER NOT NULL,
   "not_before_ns" INTEGER NOT NULL,
   "accepted_at_ns" INTEGER NOT NULL,
   "expires_at_ns" INTEGER,
   "body" TEXT NOT NULL,
   PRIMARY KEY ("agent", "id")
) STRICT;
INSERT INTO "inbox" VALUES('old','m2',4,'message','operator',0,0,0,1767225600000000000,NULL,'{"v":1,"id":"m2","timestamp":"2026-01-01T00:00:00.000Z","source":"operator","to":"old","payload":"waiting","metadata":{}}');
CREATE TABLE "kv" (
   "agent" TEXT NOT NULL,
   "key" TEXT NOT NULL,
   "value" BLOB NOT NULL,
   "size" INTEGER NOT NULL,
   "changed_at_ns" INTEGER NOT NULL,
   PRIMARY KEY ("agent", "key")
) STRICT;
CREATE TABLE "logs" (
   "id" INTEGER PRIMARY KEY,
   "agent" TEXT NOT NULL,
   "log" TEXT NOT NULL,
   "generation" INTEGER NOT NULL,
   "epoch" TEXT NOT NULL,
   "first" INTEGER NOT NULL,
   "next" INTEGER NOT NULL,
   "size" INTEGER NOT NULL,
   "changed_at_ns" INTEGER NOT NULL,
   "tail_hash" TEXT NOT NULL,
   "is_chained" INTEGER NOT NULL
) STRICT;
INSERT INTO "logs" VALUES(1,'old','trajectory',1,'568465cb1e2b86dc',1,6,1005,1767225600000000000,'d67bbde6f330d0f2428e4dda16d9331c1d8befd9da61698ddabb9f3298f79b0e',1);
INSERT INTO "logs" VALUES(2,'old','ticks',1,'73803483a9759b91',1,2,239,1767225600000000000,'ddb8ec588b0c703e179c1fca17ebb666f987082b4b065223c410b9de409ebdb8',0);
CREATE TABLE "meta" (
   "name" TEXT PRIMARY KEY,
   "value" INTEGER NOT NULL
) STRICT;
INSERT INTO "meta" VALUES('seq',5);
CREATE TABLE "receipts" (
   "agent" TEXT NOT NULL,
   "id" TEXT NOT NULL,
   "seq" INTEGER NOT NULL,
   "hash" TEXT NOT NULL,
   "accepted_at_ns" INTEGER NOT NULL,
   PRIMARY KEY ("agent", "id")
) STRICT;
INSERT INTO "receipts" VALUES('old','m1',1,'602f8a433c69fefa6def3fdad3712725d030c532e341c45913fd7b5acb0fe567',1767225600000000000);
INSERT INTO "receipts" VALUES('old','m2',3,'2e6a2382445ff8994576b76d94a549f1abdd095cf216793f68a876dd83affe48',1767225600000000000);
CREATE TABLE "records" (
   "log" INTEGER NOT NULL,
   "seq" INTEGER NOT NULL,
   "end" INTEGER NOT NULL,
   "line" TEXT NOT NULL,
   PRIMARY KEY ("log", "seq")
) STRICT, WITHOUT ROWID;
INSERT INTO "records" VALUES(1,1,167,'{"seq":1,"prev":"0000000000000000000000000000000000000000000000000000000000000000","at":"2026-01-01T00:00:00.000Z","agent":"old","type":"lifecycle","event":"created"}
');
INSERT INTO "records" VALUES(1,2,373,'{"seq":2,"prev":"3cdd33264999f721a15a76b2d918518c7baab0a36ac21b91f409d564dd864a55","at":"2026-01-01T00:00:00.000Z","agent":"old","type":"message_in","envelope_id":"m1","kind":"message","source":"operator"}
');
INSERT INTO "records" VALUES(1,3,634,'{"seq":3,"prev":"700bfbc4c7dc9ed0175bc2f7b883fa394d756287466432e8c431e5bad3ad8296","at":"2026-01-01T00:00:00.000Z","agent":"old","type":"tick_end","tick_id":"019b76da-a800-7b17-9384-0f4cfd589c6c","envelope_id":"m1","cause":"message","attempt":1,"outcome":"ok"}
');
INSERT INTO "records" VALUES(1,4,799,'{"seq":4,"prev":"d264152f3f614e394f9e8242191c7dc5073f5f085c812dd452d629d1df1cc832","at":"2026-01-01T00:00:00.000Z","agent":"old","type":"lifecycle","event":"pause"}
');
INSERT INTO "records" VALUES(1,5,1005,'{"seq":5,"prev":"fd85c27be1cb89c0ef06efa2eb94b0a3a59fb79dfce95d0a3df015be1cddb845","at":"2026-01-01T00:00:00.000Z","agent":"old","type":"message_in","envelope_id":"m2","kind":"message","source":"operator"}
');
INSERT INTO "records" VALUES(2,1,239,'{"seq":1,"at":"2026-01-01T00:00:00.000Z","agent":"old","type":"tick","tick_id":"019b76da-a800-7b17-9384-0f4cfd589c6c","envelope_id":"m1","cause":"message","attempt":1,"outcome":"ok","started_at":"2026-01-01T00:00:00.000Z","duration_ms":0}
');
CREATE TABLE "seen" (
   "agent" TEXT NOT NULL,
   "key" TEXT NOT NULL,
   "seq" INTEGER NOT NULL,
   "at_ns" INTEGER NOT NULL,
   PRIMARY KEY ("agent", "key")
) STRICT;
CREATE TABLE "states" (
   "agent" TEXT PRIMARY KEY NOT NULL,
   "state" TEXT NOT NULL,
   "schema" INTEGER NOT NULL,
   "tick_count" INTEGER NOT NULL,
   "last_tick_at_ns" INTEGER NOT NULL,
   "last_tick_cause" TEXT NOT NULL,
   "failures" INTEGER NOT NULL,
   "version" INTEGER NOT NULL
) STRICT;
INSERT INTO "states" VALUES('old','{"n":1}',1,1,1767225600000000000,'message',0,1);
CREATE UNIQUE INDEX "inbox_by_seq"
    ON "inbox" ("agent", "seq");
CREATE UNIQUE INDEX "receipts_by_seq"
    ON "receipts" ("agent", "seq");
CREATE UNIQUE INDEX "seen_by_seq"
    ON "seen" ("agent", "seq");
CREATE UNIQUE INDEX "deadletter_by_seq"
    ON "deadletter" ("agent", "seq");
CREATE UNIQUE INDEX "deliveries_by_seq"
    ON "deliveries" ("agent", "seq");
CREATE UNIQUE INDEX "logs_by_name"
    ON "logs" ("agent", "log", "generation");
COMMIT;
