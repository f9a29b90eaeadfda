// TypeORM, over pg: an entity whose table it makes.

const assert = require('node:assert/strict');
const { DataSource, EntitySchema } = require('typeorm');
const version = require('./node-version.cjs');

const { URL: url, OTHER_URL, CLIENT } = process.env;

const Made = new EntitySchema({
    name: 'Made',
    tableName: 'made',
    columns: { client: { type: 'text', primary: true } },
});

async function place(address) {
    const db = await new DataSource({ type: 'postgres', url: address }).initialize();
    const [{ name }] = await db.query('select name from place');
    await db.destroy();
    return name;
}

async function main() {
    console.log(version('typeorm'));
    assert.equal(await place(url), 'feature/login');
    assert.equal(await place(OTHER_URL), 'other');
    assert.equal(await place(`${url}?sslmode=no-verify`), 'feature/login');

    const db = await new DataSource({ type: 'postgres', url, entities: [Made] }).initialize();
    await db.synchronize();
    const made = db.getRepository(Made);
    await made.save({ client: CLIENT });
    assert.equal((await made.find())[0].client, CLIENT);
    await db.destroy();
}

main();
