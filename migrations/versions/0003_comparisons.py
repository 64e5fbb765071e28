"""comparisons

Revision ID: 0003
Revises: 0002
"""

from alembic import op
import sqlalchemy as sa

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('comparisons',
    sa.Column('number', sa.Integer(), autoincrement=True, nullable=False),
    sa.Column('id', sa.String(length=40), nullable=False),
    sa.Column('tenant', sa.String(length=32), nullable=False),
    sa.Column('state', sa.String(length=20), nullable=False),
    sa.Column('base', sa.String(length=64), nullable=False),
    sa.Column('training_file', sa.String(length=40), nullable=False),
    sa.Column('validation_file', sa.String(length=40), nullable=False),
    sa.Column('validation_digest', sa.String(length=64), nullable=False),
    sa.Column('budget', sa.JSON(), nullable=False),
    sa.Column('training', sa.JSON(), nullable=False),
    sa.Column('metric', sa.String(length=16), nullable=False),
    sa.Column('seed', sa.Integer(), nullable=False),
    sa.Column('suffix', sa.String(length=64), nullable=True),
    sa.Column('metadata', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('max_validation_rows', sa.Integer(), nullable=False),
    sa.Column('entries', sa.JSON(), nullable=False),
    sa.Column('idempotency_key', sa.String(length=255), nullable=True),
    sa.Column('request_digest', sa.String(length=64), nullable=False),
    sa.Column('owner', sa.String(length=128), nullable=True),
    sa.Column('fence', sa.Integer(), nullable=False),
    sa.Column('lease_until', sa.Double(), nullable=True),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.Column('finished_at', sa.Double(), nullable=True),
    sa.Column('measured_by', sa.String(length=16), nullable=True),
    sa.Column('measured', sa.JSON(), nullable=False),
    sa.Column('result', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('plots', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('error', sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint('number', name=op.f('pk_comparisons')),
    sa.UniqueConstraint('id', name=op.f('uq_comparisons_id')),
    sa.UniqueConstraint('tenant', 'idempotency_key', name=op.f('uq_comparisons_tenant'))
    )
    with op.batch_alter_table('comparisons', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_comparisons_state'), ['state'], unique=False)
        batch_op.create_index(batch_op.f('ix_comparisons_tenant'), ['tenant'], unique=False)
        batch_op.create_index(batch_op.f('ix_comparisons_validation_digest'), ['validation_digest'], unique=False)

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('comparison_id', sa.String(length=40), nullable=True))
        batch_op.add_column(sa.Column('usage', sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column('metrics', sa.JSON(none_as_null=True), nullable=True))
        batch_op.create_index(batch_op.f('ix_jobs_comparison_id'), ['comparison_id'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_jobs_comparison_id'))
        batch_op.drop_column('metrics')
        batch_op.drop_column('usage')
        batch_op.drop_column('comparison_id')

    op.drop_table('comparisons')
